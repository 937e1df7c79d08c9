"""The columns of a slot's main table, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from nonet.compare import units
from nonet.compare.spread import Estimate
from nonet.compare.store import Record
from nonet.compare.summary import Entry, Slot
from nonet.compare.verdict import Advice

ONE_SEED = "one seed"


@dataclass(frozen=True)
class Item:
    """A cell: what it says, in small what qualifies it, and whether no other is better."""

    text: str
    small: str = ""
    best: bool = False


class Column(NamedTuple):
    """A column: its head, what it says of an entry, and its head in a terminal, where it has room."""

    head: Item
    item: Callable[[Entry], Item]
    short: str = ""


_NOTE = "Bold: no other is better by more than the spread. ±: half the width of the 95 % interval."
_WRITING = (
    "Bold: what is recommended. Each row is of its fastest block. Against alone: the median over texts of "
    "the ratio to the primary in the same run, with quartiles. Tokens a second come from a run of its own "
    "for each row: compare the ratios."
)


def note(slot: Slot) -> str:
    """Returns how the columns are to be read."""
    return _WRITING if slot.name == "pairing" else _NOTE


def columns(slot: Slot, advice: Advice, plan: Record) -> tuple[Column, ...]:
    """Returns what matters in a slot: quality, speed, memory and generating, or how fast two models write."""
    if slot.name == "pairing":
        return _writing(advice)
    level, level_in_time = advice.level
    context = max((p.x for e in slot.entries for p in e.series["step"]), default=None)
    at = f"at {units.count(context)} tokens" if context else ""
    time = f"bits per byte at {units.seconds(slot.budget)}" if slot.budget else "bits per byte"
    quality = (
        Column(
            Item("Equal tokens", "bits per byte"),
            lambda e: _bits(e.numbers["quality"], e.name in level),
            "equal tokens",
        ),
        Column(
            Item("Equal time", time),
            lambda e: _bits(e.numbers["timed"], e.name in level_in_time),
            "equal time",
        ),
    )
    speed = _plain("Training", "tokens a second", "speed", units.rounded, "tokens/s")
    memory = _plain("Peak memory", "in training", "peak", units.memory, "memory")
    step = _plain("One more token", at, "step", units.seconds, "a token")
    if slot.name == "adapter":
        return (
            *quality,
            speed,
            memory,
            step,
            Column(Item("Trained parameters"), _trained),
            _plain("Optimiser", "its state", "optimizer", units.memory),
            _plain("File", "that is kept", "file", units.memory),
        )
    return (
        *quality,
        Column(
            Item("Beyond window", f"bits per byte past {units.count(plan['window'])}"),
            lambda e: _bits(e.numbers["beyond"]),
        ),
        speed,
        memory,
        step,
        _plain("Cache", at, "cache", units.memory),
        Column(
            Item("Parameters"),
            lambda e: Item(units.count(e.parameters), "not matched" if e.matched is False else ""),
        ),
    )


def _writing(advice: Advice) -> tuple[Column, ...]:
    level, _ = advice.level
    return (
        _plain("Tokens a second", "", "rate", units.rate, "tokens/s"),
        Column(Item("Against alone"), lambda e: _against(e, e.name in level), "against alone"),
        Column(Item("Best block", "tokens drafted at once"), _block, "block"),
        _plain("Accepted", "of the drafted", "accepted", units.share, "accepted"),
        _plain("Tokens a pass", "of the primary", "pass", units.rate),
        Column(Item("Identical", "texts"), _identical, "identical"),
        Column(Item("Trained parameters"), _trained),
    )


def _plain(head: str, small: str, number: str, say: Callable[[float | None], str], short: str = "") -> Column:
    return Column(Item(head, small), lambda e: Item(say(e.number(number))), short)


def _block(entry: Entry) -> Item:
    return Item(units.count(entry.number("block") or None))


def _trained(entry: Entry) -> Item:
    """How many, and what share of the model's."""
    trained = entry.number("trained")
    share = units.part(trained / entry.parameters) if trained and entry.parameters else ""
    return Item(units.count(trained), share)


def _against(entry: Entry, best: bool) -> Item:
    """The ratio of speeds, with the quartiles of the texts."""
    block = entry.number("block")
    spread = next((point for point in entry.series["ratio"] if point.x == block), None)
    small = f"{units.ratio(spread.low)} to {units.ratio(spread.high)}" if spread else ""
    return Item(units.ratio(entry.number("ratio")), small, best)


def _identical(entry: Entry) -> Item:
    same, texts = entry.numbers["identical"], entry.numbers["texts"]
    if same is None or texts is None:
        return Item(units.DASH)
    return Item(f"{units.count(sum(same.values))} of {units.count(sum(texts.values))}")


def standing(entry: Entry) -> str:
    """Returns what a reader must know of an entry before its numbers."""
    words = [] if entry.role == "method" else [entry.role]
    if entry.errors:
        what = "diverged" if entry.diverged else "failed"
        words.append(what if len(entry.errors) == entry.planned else f"{len(entry.errors)} {what}")
    waiting = entry.planned - entry.done - len(entry.errors)
    if waiting:
        words.append("not run" if waiting == entry.planned else f"{waiting} not run")
    return ", ".join(words)


def _bits(found: Estimate | None, best: bool = False) -> Item:
    if found is None:
        return Item(units.DASH)
    small = ONE_SEED if found.half is None else f"±{units.GAP}{units.bits(found.half)}"
    return Item(units.bits(found.mean), small, best)
