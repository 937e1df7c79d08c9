"""Rows as tables, for a terminal and for a document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nonet.bench.results import newest
from nonet.compare import units
from nonet.compare.store import Record

_NONE = "Nothing has been measured yet."


@dataclass(frozen=True)
class Sheet:
    """A table of words."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def sheets(rows: Sequence[Record], full: bool) -> list[Sheet]:
    """Returns times, growth with length and memory, those of them that the rows tell of.

    Args:
        rows: what was measured.
        full: with quartiles and every limit, for a page; else what fits into a terminal.
    """
    found = (_times(rows, full), _lengths(rows), _memory(rows))
    return [sheet for sheet in found if sheet.lines]


def terminal(rows: Sequence[Record]) -> RenderableType:
    """Returns the tables for a terminal."""
    return Group(*(_rich(sheet) for sheet in sheets(rows, full=False)), Text(origin(rows), style="dim"))


def document(stored: Iterable[Record]) -> str:
    """Returns everything of :func:`newest` as Markdown."""
    parts = []
    for rows in newest(stored):
        parts += [f"{sheet.title}\n\n{_markdown(sheet)}" for sheet in sheets(rows, full=True)]
        parts.append(origin(rows))
    return "\n\n".join(parts) or _NONE


def headlines(stored: Iterable[Record]) -> str:
    """Returns as Markdown, of :func:`newest`, a line a workload: ours beside other people's code.

    Rows are those on the most threads, with memory given back as it is by default. Times of the others, and
    why one did not run, are left to :func:`document`.
    """
    parts = []
    for rows in newest(stored):
        most = max(row["threads"] for row in rows)
        rows = [r for r in rows if r["threads"] == most and not r["series"] and not r["memory_kept"]]
        lines = tuple(line for row in rows if (line := _headline(row)))
        if lines:
            sheet = Sheet("", ("workload", "nonet", "of its limit", "times as fast as"), lines)
            title = f"Medians (threads: {most}), ratios with their quartiles."
            parts += [title, _markdown(sheet), origin(rows)]
    return "\n\n".join(parts) or _NONE


def _headline(row: Record) -> tuple[str, ...]:
    """Returns a workload's only line, or nothing where nobody else does the same."""
    ours, *others = row["contenders"]
    if row["state"] == "failed":
        return (_name(row), "failed", units.DASH, units.DASH)
    said = [
        f"{other['name']} {'did not run' if other['failure'] else _spread(other['ratio'], units.times, True)}"
        for other in others
        if other["package"]
    ]
    return (_name(row), units.seconds(ours["median"]), _shares(row, False), "<br>".join(said)) if said else ()


def origin(rows: Sequence[Record]) -> str:
    """Returns in a sentence or two on which machine, with which versions, when and how rows were measured."""
    if not rows:
        return _NONE
    each = [row["provenance"] for row in rows]
    versions = [
        f"{name} {_all(p[name] for p in each)}" for name in ("nonet", "torch", "transformers", "python")
    ]
    peers = sorted({name for p in each for name in p["peers"]} - {"torch", "transformers"})
    versions += [f"{name} {_all(p['peers'].get(name) for p in each)}" for name in peers]
    commits = _all(f"{p['commit'][:10]}{' with changes' if p['dirty'] else ''}" for p in each if p["commit"])
    days = sorted({p["date"][:10] for p in each})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return (
        f"Measured on {_all(p['cpu'] for p in each)} with {_all(p['cores'] for p in each)} cores, {when}; "
        f"{', '.join(versions)}{f'; commit {commits}' if commits else ''}. "
        f"Again by {_all('`' + p['command'] + '`' for p in each)}."
    )


def _times(rows: Iterable[Record], full: bool) -> Sheet:
    columns = ("workload", "threads", "nonet", "of the limits", "against", "theirs", "over ours", "rounds")
    title = f"Median time of a call{', with the quartiles of its rounds' if full else ''}. "
    lines = (line for row in rows if not row["series"] for line in _time_lines(row, full))
    return Sheet(f"{title}Over ours: above 1, nonet is faster.", columns, tuple(lines))


def _time_lines(row: Record, full: bool) -> list[tuple[str, ...]]:
    """Returns a line for each of the others; what is ours stands in the first."""
    ours, *others = row["contenders"]
    name, threads = _name(row), str(row["threads"])
    if row["state"] == "failed":
        return [(name, threads, f"failed: {row['reason']}", *[units.DASH] * 5)]
    blocks = []
    for other in others:
        if other["failure"]:
            blocks.append((other["name"], other["failure"], units.DASH, units.DASH))
        else:
            ratio = _spread(other["ratio"], units.times, full)
            blocks.append((other["name"], units.seconds(other["median"]), ratio, str(other["rounds"])))
    first, *rest = blocks or [(units.DASH, units.DASH, units.DASH, str(ours["rounds"]))]
    head = (name, threads, _spread(ours, units.seconds, full), _shares(row, full))
    return [(*head, *first), *(("", "", "", "", *block) for block in rest)]


def _lengths(rows: Iterable[Record]) -> Sheet:
    points = [row for row in rows if row["series"]]
    half: dict[tuple[Any, ...], float] = {}
    lines = []
    for row in sorted(points, key=_place):
        ours, sizes = row["contenders"][0], dict(row["sizes"])
        T = sizes.pop("T")
        kept = ", memory kept" if row["memory_kept"] else ""
        curve = (row["kernel"], row["what"], row["threads"], kept, tuple(sizes.items()))
        median = ours.get("median")
        before = half.get((*curve, T // 2))
        growth = units.times(median / before) if median and before else units.DASH
        time = _spread(ours, units.seconds, full=True) if median else f"failed: {row['reason']}"
        shape = " ".join(f"{letter}{size}" for letter, size in sizes.items())
        lines.append(
            (
                f"{row['kernel']} {row['what']} {shape}{kept}",
                str(row["threads"]),
                units.count(T),
                time,
                growth,
            )
        )
        if median:
            half[*curve, T] = median
    columns = ("operation", "threads", "length", "nonet", "of half the length")
    return Sheet(
        "Median time by length; what grows as the length doubles at each line.", columns, tuple(lines)
    )


def _place(row: Record) -> tuple[Any, ...]:
    """Sorts the points of curves."""
    return row["kernel"], row["memory_kept"], -row["threads"], row["sizes"]["T"]


def _memory(rows: Iterable[Record]) -> Sheet:
    lines = tuple(
        (
            _name(row),
            str(row["threads"]),
            c["name"],
            units.memory(c.get("kept")),
            units.memory(c.get("peak")),
        )
        for row in rows
        for c in row["contenders"]
        if "kept" in c or "peak" in c
    )
    columns = ("workload", "threads", "who", "kept for the backward pass", "rise of resident memory")
    title = "Memory: what autograd keeps beside inputs and output, and by how much resident memory rises."
    return Sheet(title, columns, lines)


def _spread(found: Record, say: Callable[[float], str], full: bool) -> str:
    quartiles = f" ({say(found['low'])} to {say(found['high'])})" if full else ""
    return f"{say(found['median'])}{quartiles}"


def _name(row: Record) -> str:
    return f"{row['name']}, memory kept" if row["memory_kept"] else row["name"]


def _shares(row: Record, full: bool) -> str:
    """Returns what part of its limits ours reaches, or of the nearest."""
    nearest_first = sorted(row["shares"].items(), key=lambda item: -item[1])
    words = [f"{units.share(share)} {kind}" for kind, share in nearest_first]
    return ", ".join(words if full else words[:1]) or units.DASH


def _all(values: Iterable[Any]) -> str:
    """Returns the different values there are, in order of appearance."""
    return (
        units.listed(list(dict.fromkeys(str(value) for value in values if value is not None))) or units.DASH
    )


def _markdown(sheet: Sheet) -> str:
    lines = (sheet.columns, ("---",) * len(sheet.columns), *sheet.lines)
    return "\n".join(f"| {' | '.join(word.replace('|', '/') for word in line)} |" for line in lines)


def _rich(sheet: Sheet) -> Table:
    table = Table(*sheet.columns, title=sheet.title, title_justify="left")
    for line in sheet.lines:
        table.add_row(*(Text(word) for word in line))
    return table
