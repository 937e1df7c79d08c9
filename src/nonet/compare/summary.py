"""From the plan and the rows to the numbers of a report: pure functions, no text beyond names."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nonet import registry
from nonet.compare.crossover import Crossover, Point, crossover
from nonet.compare.plan import AROUND
from nonet.compare.reading import numbers, series, training_time
from nonet.compare.spread import Estimate, estimate
from nonet.compare.store import Record, finished

REFERENCE = "flash"  # the mixer that crossover lengths are measured against
MATCH = 0.05  # parameter counts this close to the slot's median are matched

CROSSING = ("forward", "backward", "step", "cache_bytes")


@dataclass(frozen=True)
class Entry:
    """What was measured of one thing that fills a slot.

    Attributes:
        name: as in a configuration.
        title: as a reader knows it.
        role: method, baseline or variant.
        planned: cells of the plan, of both kinds.
        done: of them, those that finished.
        errors: first line of what went wrong, one for each cell that did not finish.
        diverged: whether the training of a cell diverged.
        parameters: of the model that it makes.
        matched: whether they lie within 5 % of the slot's median; None where they are not meant to.
        numbers: over the seeds: bits per byte at equal tokens (``quality``), at equal time (``timed``)
            and at places past the window (``beyond``); tokens a second (``speed``) and bytes (``peak``) in
            training; seconds a token (``step``) and bytes (``cache``) at the longest context. Around a
            pretrained model also the parameters that are ``trained``, bytes of the ``optimizer`` and the
            ``file``; and of a pairing with its best ``block``, tokens a second (``rate``), the same over the
            primary's alone (``ratio``), the share of drafts that was ``accepted``, tokens a ``pass`` of the
            primary, and how many of the ``texts`` were ``identical`` to the primary's.
        series: means over the seeds: the loss in training (``tokens``, ``seconds``), :data:`GROWTH`
            against length, ``step`` and ``cache_bytes`` against context, the loss against ``places`` and
            against parameters ``trained``; and of a pairing, ``ratio`` and share ``accepted`` against the
            length of a block, and ``accepted_at`` against the place in the longest.
        recall: (task, length) -> accuracy.
        sample: a finished row, for what it says of settings.
    """

    name: str
    title: str
    role: str
    planned: int
    done: int
    errors: tuple[str, ...]
    diverged: bool
    parameters: int | None
    matched: bool | None
    numbers: dict[str, Estimate | None]
    series: dict[str, tuple[Point, ...]]
    recall: dict[tuple[str, int], Estimate]
    sample: Record | None

    def number(self, name: str) -> float | None:
        """Returns the mean over seeds of one of ``numbers``."""
        found = self.numbers[name]
        return found.mean if found else None


@dataclass(frozen=True)
class Slot:
    """One table of the report.

    Attributes:
        name: of the slot.
        question: that it answers.
        entries: in the order of the registry.
        budget: seconds of training at which equal time is read; the shortest run's.
        crossings: mixer -> quantity of :data:`CROSSING` -> where it becomes cheaper than the reference.
        chance: (task, length) -> accuracy of guessing, for the recall tasks in order.
    """

    name: registry.Slot
    question: str
    entries: tuple[Entry, ...]
    budget: float | None
    crossings: dict[str, dict[str, Crossover | None]]
    chance: dict[tuple[str, int], float | None]

    def title(self, name: str) -> str:
        """Returns an entry's title."""
        return next(entry.title for entry in self.entries if entry.name == name)


def summarise(plan: Record, rows: Iterable[Record]) -> tuple[Slot, ...]:
    """Returns the numbers of each slot of the plan."""
    rows = list(rows)
    done = finished(rows)
    failed = {row["cell"]["id"]: row for row in rows if row["state"] != "done"}
    return tuple(_slot(name, plan, done, failed) for name in plan["slots"])


def seeds_run(plan: Record, rows: Iterable[Record]) -> list[int]:
    """Returns the seeds that have finished rows; those of the plan where there is none yet."""
    return sorted({row["cell"]["seed"] for row in finished(rows).values()}) or list(plan["seeds"])


def first_line(error: str | None) -> str:
    """Returns the first line of an error that says something."""
    return next((line.strip() for line in (error or "").splitlines() if line.strip()), "no reason was given")


def _slot(name: registry.Slot, plan: Record, done: dict[str, Record], failed: dict[str, Record]) -> Slot:
    cells: dict[str, list[dict[str, Any]]] = {}
    for cell in plan["cells"]:
        if name in cell["slots"]:
            cells.setdefault(cell[name], []).append(cell)
    known = {part.name: part for part in registry.parts(name)}
    order = [*(n for n in known if n in cells), *sorted(set(cells) - set(known))]
    runs = {n: [done[c["id"]] for c in cells[n] if c["id"] in done] for n in order}
    budget = min((end for rows in runs.values() for end in map(training_time, rows) if end), default=None)
    entries = tuple(_entry(n, known.get(n), cells[n], runs[n], failed, plan["window"], budget) for n in order)
    if name not in AROUND:
        entries = _matched(entries)
    question = registry.SLOTS[name]
    return Slot(name, question, entries, budget, _crossings(name, entries), _chances(runs))


def _entry(
    name: str,
    part: registry.Part | None,
    cells: list[dict[str, Any]],
    runs: list[Record],
    failed: dict[str, Record],
    window: int,
    budget: float | None,
) -> Entry:
    ran = {row["cell"]["id"] for row in runs}
    main = [row for row in runs if row["cell"]["kind"] != "recall"]
    lost = [failed[c["id"]] for c in cells if c["id"] in failed and c["id"] not in ran]
    return Entry(
        name=name,
        title=part.title if part else name,
        role=part.role if part else "variant",
        planned=len(cells),
        done=len(runs),
        errors=tuple(first_line(row["error"]) for row in lost),
        diverged=any(row["state"] == "diverged" for row in lost),
        parameters=next((row["parameters"] for row in main), cells[0]["parameters"] or None),
        matched=None,
        numbers=numbers(main, window, budget),
        series=series(main),
        recall=_recall(runs),
        sample=next(iter(main or runs), None),
    )


def _recall(rows: Sequence[Record]) -> dict[tuple[str, int], Estimate]:
    found: dict[tuple[str, int], list[float | None]] = {}
    for task in _tasks(rows):
        found.setdefault((task["task"], task["length"]), []).append(task["accuracy"])
    return {key: value for key, value in ((k, estimate(v)) for k, v in found.items()) if value}


def _chances(runs: dict[str, list[Record]]) -> dict[tuple[str, int], float | None]:
    return {(t["task"], t["length"]): t["chance"] for rows in runs.values() for t in _tasks(rows)}


def _tasks(rows: Sequence[Record]) -> list[dict[str, Any]]:
    return [task for row in rows for task in row.get("tasks") or ()]


def _matched(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    counts = [entry.parameters for entry in entries if entry.parameters]
    middle = statistics.median(counts) if counts else 0
    return tuple(
        replace(entry, matched=abs(entry.parameters - middle) <= MATCH * middle)
        if entry.parameters
        else entry
        for entry in entries
    )


def _crossings(slot: str, entries: tuple[Entry, ...]) -> dict[str, dict[str, Crossover | None]]:
    reference = next((e for e in entries if slot == "mixer" and e.name == REFERENCE), None)
    if reference is None:
        return {}
    return {
        entry.name: {q: crossover(entry.series[q], reference.series[q]) for q in CROSSING}
        for entry in entries
        if entry is not reference
    }
