"""Writes the tables that documents take from the registry and from stored benchmarks, between markers.

A document that holds ``<!-- table:NAME -->`` and ``<!-- /table:NAME -->`` gets the table NAME between
them. ``python docs/tables.py`` says whether all are up to date; ``--write`` brings them up to date.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from nonet import Method, ledger, methods
from nonet.bench import results, table
from nonet.compare import store, tables
from nonet.registry import SLOTS, parts

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = ("README.md", "benchmarks/README.md", "docs/index.md", "docs/ledger.md", "docs/comparison.md")
RESULTS = ROOT / "benchmarks" / "results"
COMPARISONS = ROOT / "benchmarks" / "comparisons"  # folders that nonet compare wrote

# The nine in the notebook's order.
ROWS = ("flash", "matmulfree", "mamba", "tandem", "position", "prompt", "lora", "reformer", "linformer")


def methods_table() -> str:
    """Returns the nine methods: slots, idea, paper, and the implementations of each."""
    built = {method.name: method for method in methods()}
    lines = ["| method | slot | in one sentence | paper | runs on |", "| --- | --- | --- | --- | --- |"]
    for name in ROWS:
        method = built[name]
        title = f"[{method.title}](src/nonet/{method.name}/README.md)"
        has = ", ".join(_implementations(method)) or "PyTorch"
        slots = ", ".join(method.slots)
        lines.append(f"| {title} | {slots} | {method.idea} | {_arxiv(method.papers[0])} | {has} |")
    return "\n".join(lines)


def slots_table() -> str:
    """Returns the five slots: the question of each, and the names that a configuration fills it with."""
    lines = ["| slot | the question it answers | what fills it |", "| --- | --- | --- |"]
    for slot, question in SLOTS.items():
        names = [f"`{p.name}`" + (f" (`{p.letter}`)" if p.letter else "") for p in parts(slot)]
        lines.append(f"| {slot} | {question} | {', '.join(names) or 'nothing yet'} |")
    return "\n".join(lines)


def benchmarks_table() -> str:
    """Returns what was measured against other people's code, and on which machine."""
    return table.headlines(results.load(RESULTS))


def measured_table() -> str:
    """Returns everything that was measured."""
    return table.document(results.load(RESULTS))


def comparisons_table() -> str:
    """Returns what came of each stored comparison."""
    return _comparisons(full=False)


def compared_table() -> str:
    """Returns the same with every number."""
    return _comparisons(full=True)


def examples_table() -> str:
    """Returns what came of a pretrained model that is asked in words, with few examples."""
    [row] = [r for r in ledger.newest(ledger.read_ledger(RESULTS)) if r["claim"] == "few-docstrings"]
    return f"{row['evidence']} Again by `nonet claims prompt --full`."


def uses_table(chapters: str = "methods/") -> str:
    """Returns the nine methods for a learner: an intuition, an example use, and the chapter."""
    lines = ["| method | the idea | for example |", "| --- | --- | --- |"]
    lines += [f"| [{m.title}]({chapters}{m.name}.py) | {m.idea} | {m.use} |" for m in methods()]
    return "\n".join(lines)


def claims_table() -> str:
    """Returns the ledger, method by method: what the papers claim and what was found."""
    rows = ledger.newest(ledger.read_ledger(RESULTS))
    if not rows:
        return "Nothing has been tested yet."
    parts = []
    for method in methods():
        mine = [row for row in rows if row["method"] == method.name]
        if mine:
            parts += [f"## {method.title}", "", "| the paper | what was done | what was found | verdict |"]
            parts += ["| --- | --- | --- | --- |"]
            parts += [
                f"| {row['statement']} ({row['source']}) | {row['experiment']} | {row['evidence']} "
                f"| **{row['verdict']}** |"
                for row in mine
            ]
            parts += [""]
    return "\n".join([*parts, ledger.origin(rows)])


TABLES: dict[str, Callable[[], str]] = {
    "methods": methods_table,
    "slots": slots_table,
    "benchmarks": benchmarks_table,
    "measured": measured_table,
    "comparisons": comparisons_table,
    "compared": compared_table,
    "examples": examples_table,
    "uses": uses_table,
    "claims": claims_table,
}


def _comparisons(*, full: bool) -> str:
    folders = sorted(COMPARISONS.iterdir())
    return "\n\n".join(
        tables.document(store.read_plan(f), store.read_rows(f / store.ROWS), full=full) for f in folders
    )


def fill(text: str) -> str:
    """Returns a document with every marked table made anew; raises KeyError for an unknown name."""

    def made(found: re.Match[str]) -> str:
        name = found["name"]
        return f"<!-- table:{name} -->\n{TABLES[name]()}\n<!-- /table:{name} -->"

    return re.sub(r"<!-- table:(?P<name>\w+) -->.*?<!-- /table:(?P=name) -->", made, text, flags=re.DOTALL)


def main() -> int:
    """Returns 0 when every document is up to date, or has been brought up to date."""
    parser = argparse.ArgumentParser(
        description="Tables that documents take from what the project knows and measured."
    )
    parser.add_argument("--write", action="store_true", help="bring the documents up to date")
    write = parser.parse_args().write
    stale = 0
    for name in DOCUMENTS:
        path = ROOT / name
        old = path.read_text(encoding="utf-8")
        new = fill(old)
        if old != new and write:
            path.write_text(new, encoding="utf-8")
        elif old != new:
            stale += 1
            sys.stderr.write(f"{name} is out of date; run python docs/tables.py --write\n")
    return stale


def _implementations(method: Method) -> list[str]:
    """Returns the implementations that any op of a method has, the oracle first."""
    names = {i.name for op in method.ops for i in op.implementations}
    return sorted(names, key=lambda name: (name != "reference", name))


def _arxiv(number: str) -> str:
    return f"[{number}](https://arxiv.org/abs/{number})"


if __name__ == "__main__":
    sys.exit(main())
