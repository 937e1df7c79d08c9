"""What a recommendation consists of, and what every kind of recommendation says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nonet.compare import units
from nonet.compare.spread import Estimate, differ
from nonet.compare.store import Record
from nonet.compare.summary import Entry, Slot

TIE = 0.02  # bits per byte that a single seed cannot tell apart
CHEAPER = 0.1  # a cost must be lower by this share for a recommendation to mention it


@dataclass(frozen=True)
class Advice:
    """A recommendation for one slot.

    Attributes:
        standing: clear, a tie, dependent on whether text or time is short, or open.
        chosen: names of what is recommended, the first first.
        level: names that no other beats at equal tokens, and at equal time.
        choice: the recommendation in a sentence.
        reason: another that says why.
        because: what it rests on.
        unless: what would change it.
    """

    standing: Literal["clear", "tie", "depends", "open"]
    chosen: tuple[str, ...]
    level: tuple[frozenset[str], frozenset[str]]
    choice: str
    reason: str
    because: tuple[str, ...]
    unless: tuple[str, ...]


def measured(entry: Entry, number: str) -> Estimate:
    """Returns a number that the entry has."""
    found = entry.numbers[number]
    assert found is not None, f"{entry.name} has no {number}"
    return found


def matters(a: Estimate, b: Estimate, floor: float) -> bool:
    """Whether two differ, and by enough to care."""
    return abs(a.mean - b.mean) >= floor and differ(a, b, floor)


def sound(slot: Slot) -> list[Entry]:
    """Returns the entries that may be recommended: those of which no training diverged."""
    return [entry for entry in slot.entries if not entry.diverged]


def named(entries: Sequence[Entry]) -> frozenset[str]:
    """Returns the names of entries."""
    return frozenset(entry.name for entry in entries)


def nothing_yet(slot: Slot, done: Sequence[Entry]) -> Advice:
    """Returns what can be said of fewer than two."""
    reason = f"Only {done[0].title} has finished." if done else "No training has finished."
    level = named(done)
    return Advice("open", (), (level, level), "Nothing to recommend yet.", reason, (), tuple(failures(slot)))


def failures(slot: Slot) -> list[str]:
    """Returns a line each on runs that diverged, that failed, and that are missing."""
    lines = []
    diverged = [entry.title for entry in slot.entries if entry.diverged]
    if diverged:
        lines.append(f"Training of {units.listed(diverged)} diverged, which is why it is not recommended.")
    failed = [entry.title for entry in slot.entries if entry.errors and not entry.diverged]
    if failed:
        lines.append(f"Runs of {units.listed(failed)} failed.")
    waiting = [e.title for e in slot.entries if e.planned > e.done + len(e.errors)]
    if waiting:
        lines.append(f"Runs of {units.listed(waiting)} are not finished.")
    return lines


def more_seeds(plan: Record, level: Sequence[Entry]) -> str:
    """Returns what more seeds would show, nothing where there is nothing to part."""
    names = units.listed([entry.title for entry in level]) if len(level) > 1 else ""
    if len(plan["seeds"]) == 1:
        part = f", and {names} may part" if names else ""
        return f"More seeds: one does not tell how far a repetition would differ{part}."
    return f"More seeds: they narrow the intervals, and may part {names}." if names else ""
