"""The rows of the ledger: one line of JSON a claim that was tested, to which lines are only ever added."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import nonet
from nonet.bench.results import folder
from nonet.compare.store import Record, read_rows

NAME = "claims.jsonl"


def read_ledger(directory: Path | None = None) -> list[Record]:
    """Returns all rows, oldest first, none where nothing was tested yet.

    Args:
        directory: that holds the ledger; by default that of the checkout that this package lies in, else
            where ``nonet claims`` writes by itself.

    Raises:
        ValueError: a row is broken.
    """
    checkout = Path(nonet.__file__).resolve().parents[2] / "benchmarks" / "results"
    if directory is None and (checkout / NAME).exists():
        directory = checkout
    return read_rows(folder(directory) / NAME)


def newest(rows: Iterable[Record]) -> list[Record]:
    """Returns the row of each claim that counts: of the full size before the quick, then the last."""
    best: dict[tuple[str, str], Record] = {}
    for row in rows:
        key = row["method"], row["claim"]
        if key not in best or row["full"] >= best[key]["full"]:
            best[key] = row
    return list(best.values())


def origin(rows: Iterable[Record]) -> str:
    """Returns a sentence that says where, when and with what rows were found."""
    rows = list(rows)
    said = [row["provenance"] for row in rows]
    machines = sorted({f"{p['cpu']}, {p['cores']} cores, threads: {p['threads']}" for p in said})
    dates = sorted({p["date"][:10] for p in said})
    versions = sorted({f"nonet {p['nonet']}, torch {p['torch']}, python {p['python']}" for p in said})
    commits = sorted({str(p["commit"])[:10] + (" with changes" if p["dirty"] else "") for p in said})
    full = sum(row["full"] for row in rows)
    when = " to ".join(dict.fromkeys((dates[0], dates[-1])))
    return (
        f"{len(rows)} claims, {full} of them at the full size, tested {when} "
        f"on {' and '.join(machines)}; {'; '.join(versions)}; commit {', '.join(commits)}. "
        "Again by `nonet claims` or `nonet claims --full`."
    )
