"""From the numbers of a slot to a plain recommendation: what to use, why, and what would change it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from nonet.compare import units
from nonet.compare.crossover import Crossover
from nonet.compare.pairing_advice import advise_pairing
from nonet.compare.spread import differ
from nonet.compare.store import Record
from nonet.compare.summary import REFERENCE, Entry, Slot
from nonet.compare.verdict import (
    CHEAPER,
    TIE,
    Advice,
    failures,
    matters,
    measured,
    more_seeds,
    named,
    nothing_yet,
    sound,
)

BUSY = 1.25  # a speed may be off by this factor before the report mentions other programs


def advise(slot: Slot, plan: Record) -> Advice:
    """Returns the recommendation for a slot."""
    return advise_pairing(slot, plan) if slot.name == "pairing" else _advise_learning(slot, plan)


def _advise_learning(slot: Slot, plan: Record) -> Advice:
    """Recommends by what is learned.

    The best at equal tokens and the best at equal time are found, each with those that differ from it
    by no more than their spread. What is in both is recommended; of several the one that needs no training,
    or else the fastest to train. What diverged is not considered.
    """
    tokens, time = _ranked(slot, "quality"), _ranked(slot, "timed")
    if len(tokens) < 2:
        return nothing_yet(slot, tokens)
    level, level_in_time = _level(tokens, "quality"), _level(time, "timed") or _level(tokens, "quality")
    both = sorted(
        (e for e in level if e in level_in_time),
        key=lambda e: (not _untrained(e), -(e.number("speed") or 0)),
    )
    if both:
        standing: Literal["clear", "tie", "depends"] = "clear" if len(both) == 1 else "tie"
        chosen = both
        choice, reason = _clear(both[0], tokens, time) if len(both) == 1 else _tie(both)
    else:
        standing, chosen = "depends", [level[0], level_in_time[0]]
        choice = (
            f"Use {chosen[0].title} where text to train on is scarce, and {chosen[1].title} where time is."
        )
        reason = "The first learns most from the same tokens, the second from the same seconds."
    return Advice(
        standing,
        tuple(entry.name for entry in chosen),
        (named(level), named(level_in_time)),
        choice,
        reason,
        tuple(_because(slot, plan, tokens, time)),
        tuple(_unless(slot, plan, chosen, tokens, level)),
    )


def _ranked(slot: Slot, number: str) -> list[Entry]:
    found = [entry for entry in sound(slot) if entry.numbers[number]]
    return sorted(found, key=lambda entry: measured(entry, number).mean)


def _level(ranked: Sequence[Entry], number: str) -> list[Entry]:
    return [e for e in ranked if not differ(measured(e, number), measured(ranked[0], number), TIE)]


def _untrained(entry: Entry) -> bool:
    """Whether it stands for doing nothing."""
    return entry.number("trained") == 0


def _use(entry: Entry) -> str:
    return "Leave the model as it is." if _untrained(entry) else f"Use {entry.title}."


def _clear(best: Entry, tokens: Sequence[Entry], time: Sequence[Entry]) -> tuple[str, str]:
    other = next(entry for entry in tokens if entry is not best)
    gap = measured(other, "quality").mean - measured(best, "quality").mean
    reached = f"It reaches {units.bits(measured(best, 'quality').mean)} bits per byte"
    if differ(measured(other, "quality"), measured(best, "quality"), TIE):
        also = ", and no other is better in the same time" if time else ""
        reason = f"{reached}, {units.bits(gap)} below {other.title}{also}."
    else:
        reason = f"{reached}, level with {other.title} at equal tokens, and is ahead at equal time."
    return _use(best), reason


def _tie(both: Sequence[Entry]) -> tuple[str, str]:
    best, *others = both
    names = [entry.title for entry in both]
    if _untrained(best):
        return _use(best), f"What {units.listed(names[1:])} learned lies within the spread."
    slower = [entry for entry in others if _faster(best, entry)]
    fast = [entry.title for entry in both if entry not in slower]
    if not slower:
        return (
            f"Use {units.listed(names, 'or')}.",
            "They tie in quality, and their speeds of training differ by no more than the spread.",
        )
    gain = units.times((best.number("speed") or 0) / (slower[0].number("speed") or 1))
    them, train = ("it", "trains") if len(fast) == 1 else ("they", "train")
    rest = units.listed([entry.title for entry in slower])
    reason = f"In quality {them} tie{'s' * (len(fast) == 1)} with {rest}, and {them} {train} fastest, "
    return f"Use {units.listed(fast, 'or')}.", f"{reason}{gain} as fast as {slower[0].title}."


def _faster(entry: Entry, other: Entry) -> bool:
    """Whether it trains faster by enough to care, and by more than the spread."""
    mine, theirs = entry.numbers["speed"], other.numbers["speed"]
    return bool(mine and theirs and mine.mean > theirs.mean and matters(mine, theirs, CHEAPER * mine.mean))


def _because(slot: Slot, plan: Record, tokens: Sequence[Entry], time: Sequence[Entry]) -> list[str]:
    lines = [f"At equal tokens ({units.count(plan['tokens'])}): {_standings(tokens, 'quality')}."]
    if time:
        lines.append(
            f"At equal time ({units.seconds(slot.budget)} of training): {_standings(time, 'timed')}."
        )
    seeds = {len(measured(entry, "quality").values) for entry in tokens}
    if seeds != {1}:
        lines.append("A difference counts when it is larger than its own 95 % interval over the seeds.")
    if 1 in seeds:
        lines.append(
            f"With one seed there is no interval, and a difference below {TIE} bits per byte is a tie."
        )
    if busy := _busy(tokens):
        lines.append(busy)
    odd = [f"{e.title} ({units.count(e.parameters)})" for e in slot.entries if e.matched is False]
    if odd:
        lines.append(f"Not within 5 % of the slot's median in parameters: {units.listed(odd)}.")
    return lines + failures(slot)


def _busy(entries: Sequence[Entry]) -> str:
    """Said where other programs slowed trainings enough to change their order, and no seeds show it."""
    speeds = [found for e in entries if (found := e.numbers["speed"]) and found.half is None]
    most = max((found.high / found.mean for found in speeds if found.high), default=1.0)
    if most < BUSY:
        return ""
    return (
        "Other programs kept the machine busy: on an idle one a training might have been up to "
        f"{units.times(most)} as fast, and times that this could explain count as equal."
    )


def _standings(ranked: Sequence[Entry], number: str) -> str:
    """The best, and those behind it down to the first that is clearly worse."""
    shown = ranked[: max(2, len(_level(ranked, number)) + 1)]
    first, *rest = [f"{entry.title} {units.bits_of(measured(entry, number))}" for entry in shown]
    return f"{first} bits per byte, then {units.listed(rest)}" if rest else f"{first} bits per byte"


def _unless(
    slot: Slot, plan: Record, chosen: Sequence[Entry], tokens: Sequence[Entry], level: Sequence[Entry]
) -> list[str]:
    pick = chosen[0]
    lines = [
        _longer(slot, pick),
        _elsewhere(
            slot, pick, "beyond", f"Text beyond the trained length of {plan['window']} tokens", units.bits
        ),
        _elsewhere(slot, pick, "step", "Faster generating, one more token", units.seconds),
        _elsewhere(slot, pick, "peak", "Less memory in training", units.memory),
        _elsewhere(slot, pick, "cache", "Less memory in generating", units.memory),
        _elsewhere(slot, pick, "trained", "Fewer trained parameters", units.count),
        _elsewhere(slot, pick, "file", "A smaller file", units.memory),
        _recall(slot, pick),
        _schedule(chosen, level),
        _more_training(tokens),
        more_seeds(plan, level),
    ]
    return [line for line in lines if line]


def _longer(slot: Slot, pick: Entry) -> str:
    """Where the crossover lengths of a forward pass speak for another mixer than the one picked."""
    found = {name: crossings["forward"] for name, crossings in slot.crossings.items()}
    begin = "Longer contexts: a forward pass costs less"
    if pick.name == REFERENCE:
        able = named(sound(slot))
        cheaper = _cheaper(slot, [(n, c) for n, c in found.items() if c and n in able])
        return f"{begin} than {pick.title}'s with {cheaper}." if cheaper else ""
    mine = found.get(pick.name)
    if mine is None or mine.kind in ("always", "level"):
        return ""
    exact = slot.title(REFERENCE)
    if mine.kind == "never":
        return f"{begin} with {exact} at {units.count(mine.longest)} tokens, the longest measured."
    if mine.dearer is None or mine.length is None:
        return ""
    until = (
        f"up to {units.count(mine.dearer)}" if mine.level else f"below about {units.rounded(mine.length, 2)}"
    )
    return f"Shorter contexts: {until} tokens a forward pass costs less with {exact}."


def _cheaper(slot: Slot, found: list[tuple[str, Crossover]]) -> str:
    """Which mixers cost less, and from which length on; those within the spread are left out."""
    always = units.listed([slot.title(name) for name, c in found if c.kind == "always"])
    later = sorted((c.length, slot.title(name), c.start) for name, c in found if c.length is not None)
    words = [f"{always} at every length measured"] if always else []
    return units.listed([*words, *(f"{title} {where} tokens" for _, title, where in later)])


def _elsewhere(slot: Slot, pick: Entry, number: str, need: str, say: Callable[[float | None], str]) -> str:
    """Names the entry that is best in a number, where it is clearly better than the pick."""
    mine, ranked = pick.numbers[number], [e for e in _ranked(slot, number) if not _untrained(e)]
    if not mine or not ranked:
        return ""
    best = measured(ranked[0], number)
    floor = TIE if number == "beyond" else CHEAPER * mine.mean
    if best.mean >= mine.mean or not matters(best, mine, floor):
        return ""
    unit = " bits per byte" if number == "beyond" else ""
    return f"{need}: {ranked[0].title} {say(best.mean)}{unit}, {pick.title} {say(mine.mean)}."


def _recall(slot: Slot, pick: Entry) -> str:
    """The longest length of each task at which another finds clearly more."""
    worse: dict[str, str] = {}
    for task, length in sorted(slot.chance, key=lambda key: key[1]):
        able = [e for e in sound(slot) if (task, length) in e.recall]
        best = max(able, key=lambda e: e.recall[task, length].mean, default=pick)
        if pick not in able or not matters(best.recall[task, length], pick.recall[task, length], CHEAPER):
            continue
        theirs, mine = (units.share(e.recall[task, length].mean) for e in (best, pick))
        worse[task] = f"{task.replace('_', ' ')} ({best.title} {theirs}, {pick.title} {mine})"
    return f"Text that must be found again: {units.listed(list(worse.values()))}." if worse else ""


def _schedule(chosen: Sequence[Entry], level: Sequence[Entry]) -> str:
    """Said where equal time decided between entries that equal tokens did not, or otherwise."""
    if all(entry in level for entry in chosen) and len(chosen) == len(level):
        return ""
    return (
        "Slower methods were read before their learning rate had decayed; a schedule fitted to the time "
        "budget could change the order."
    )


def _more_training(tokens: Sequence[Entry]) -> str:
    """The curves' own word on whether the order has settled."""
    curves = {e.title: e.series["tokens"] for e in tokens if len(e.series["tokens"]) >= 3}
    if len(curves) < 2:
        return ""
    final = min(curves, key=lambda title: curves[title][-1].y)
    halfway = {title: points[len(points) // 2].y for title, points in curves.items()}
    early = min(halfway, key=lambda title: halfway[title])
    fall = curves[final][-2].y - curves[final][-1].y
    line = f"More training: the curve of {final} fell by {units.bits(fall)} bits per byte in its last stretch"
    if halfway[final] - halfway[early] >= TIE:
        return f"{line}, and halfway {early} was ahead."
    return f"{line}." if fall > 0 else ""
