"""From the numbers of the pairing slot to a recommendation: the fastest whose text is the primary's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from nonet.compare import units
from nonet.compare.spread import Estimate, differ
from nonet.compare.store import Record
from nonet.compare.summary import Entry, Slot
from nonet.compare.verdict import Advice, failures, measured, more_seeds, named, nothing_yet, sound

TIE = 0.05  # of the primary's speed, which a single seed cannot tell apart


def advise_pairing(slot: Slot, plan: Record) -> Advice:
    """Returns the recommendation: who drafts, with blocks of which length, or that nobody should.

    Speeds are ratios to the primary alone, since each is measured beside it, text by text. A pairing that
    changed a text is not recommended, and one that is not faster than the primary alone neither.
    """
    done = [entry for entry in sound(slot) if entry.numbers["ratio"]]
    ranked = sorted(
        (entry for entry in done if measured(entry, "block").mean),
        key=lambda entry: -measured(entry, "ratio").mean,
    )
    if not ranked:
        return nothing_yet(slot, done)
    faster = [entry for entry in ranked if _exact(entry) and _faster(entry)]
    level = [e for e in faster if not differ(measured(e, "ratio"), measured(faster[0], "ratio"), TIE)]
    standing: Literal["clear", "tie"] = "tie" if len(level) > 1 else "clear"
    if level:
        choice, reason = _use(level)
        chosen = named(level)
    else:
        choice, reason = "Let the primary write alone.", _none_helps(ranked)
        chosen = named([entry for entry in done if not measured(entry, "block").mean])
    picked = tuple(entry.name for entry in slot.entries if entry.name in chosen)
    return Advice(
        standing,
        picked,
        (chosen, chosen),
        choice,
        reason,
        tuple(_because(slot, plan, ranked)),
        tuple(_unless(plan, ranked, level)),
    )


def _exact(entry: Entry) -> bool:
    return measured(entry, "identical") == measured(entry, "texts")


def _faster(entry: Entry) -> bool:
    """Whether it beats the primary alone by more than the spread of seeds, or with one seed of texts."""
    found = measured(entry, "ratio")
    return found.mean > 1 and differ(found, Estimate((1.0,) * len(found.values)))


def _said(entry: Entry) -> str:
    return f"{entry.title} with blocks of {_block(entry)} at {units.ratio(entry.number('ratio'))}"


def _block(entry: Entry) -> str:
    return units.count(entry.number("block"))


def _use(level: Sequence[Entry]) -> tuple[str, str]:
    best, *others = level
    ways = [f"{entry.title} with blocks of {_block(entry)}" for entry in level]
    same = f"all {units.count(sum(measured(best, 'texts').values))} texts are the primary's own"
    speed = f"{units.ratio(best.number('ratio'))} the speed of the primary alone"
    if others:
        return f"Use {units.listed(ways, 'or')}.", f"They tie, the first at {speed}; {same}."
    return f"Use {ways[0]}.", f"It writes at {speed}, and {same}."


def _none_helps(ranked: Sequence[Entry]) -> str:
    kept = [entry for entry in ranked if _exact(entry)]
    if not kept:
        return "Every draft changed some of its texts."
    return f"No draft that keeps its texts makes it faster beyond the spread: {_said(kept[0])} its speed."


def _because(slot: Slot, plan: Record, ranked: Sequence[Entry]) -> list[str]:
    accepted = [
        f"{e.title} {units.share(e.number('accepted'))} ({units.rate(e.number('pass'))} tokens a pass)"
        for e in ranked
    ]
    lines = [
        f"Beside the primary alone, text by text: {units.listed([_said(entry) for entry in ranked])}.",
        f"Drafted tokens that the primary accepted: {units.listed(accepted)}.",
        f"Drafts come from {units.count(plan['work']['layers'])} of the primary's layers, trained on "
        f"{units.count(plan['tokens'])} tokens.",
    ]
    for entry in ranked:
        if not _exact(entry):
            same, texts = (sum(measured(entry, name).values) for name in ("identical", "texts"))
            lines.append(f"{entry.title} gave {units.count(same)} of {units.count(texts)} texts unchanged.")
    if len(plan["seeds"]) == 1:
        lines.append('With one seed, "faster" means faster on at least three of four texts.')
    return lines + failures(slot)


def _unless(plan: Record, ranked: Sequence[Entry], level: Sequence[Entry]) -> list[str]:
    best = level[0] if level else ranked[0]
    most, given = measured(best, "block").mean + 1, units.rate(best.number("pass"))
    lines = [
        f"More training of the draft: were all of its tokens accepted, {best.title} would give {most:.0f} "
        f"tokens a pass in place of {given}."
    ]
    changed = [e for e in ranked if not _exact(e) and _faster(e)]
    if changed and changed[0] is ranked[0]:
        lines.append(f"Texts that need not be the primary's own to the letter: {_said(changed[0])}.")
    lines.append(more_seeds(plan, level))
    return [line for line in lines if line]
