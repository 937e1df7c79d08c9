"""The fullest comparison that a budget of time affords, and what it leaves out of a fuller one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from nonet.compare import units
from nonet.compare.cost import Step, least_seconds, tokens_for
from nonet.compare.plan import Cell, Combo, Work, cells
from nonet.compare.scale import Scale, recall_fits, scales, with_less_recall
from nonet.registry import Part, Slot

ROOM = 1.25  # how much more than the estimate a suggested budget is

# Fields of the work, in words: numbers that may be smaller, and lists that may be shorter.
_NUMBERS = {
    "evaluations": "readings of the loss in training",
    "validation_windows": "windows of validation text",
    "places": "tokens of context for the loss by place",
    "task_steps": "training steps a recall task",
    "texts": "texts to continue",
    "new": "tokens a continuation",
    "repeats": "repeats of each timing",
}
_LISTS = {
    "lengths": "passes over {} tokens",
    "contexts": "decoding after {} tokens",
    "tasks": "recall by {}",
    "blocks": "blocks of {}",
}


@dataclass(frozen=True)
class Offer:
    """A comparison that could be made: the parts of each slot, what is done for each, how often."""

    chosen: dict[Slot, list[Part]]
    work: Work
    seeds: int

    def cells(self) -> tuple[Cell, ...]:
        """Returns its cells."""
        return cells(self.chosen, self.work, range(self.seeds))


def offers(
    choices: Sequence[dict[Slot, list[Part]]],
    make: Callable[[Scale], Work],
    *,
    quick: bool,
    seeds: int | None,
) -> Iterator[tuple[Offer, int]]:
    """Yields comparisons from the fullest to the least, each with the tokens below which the next is better.

    Args:
        choices: parts to compare, the last only if no scale of the others is affordable.
        make: the work of a scale.
        quick: begins with a quick comparison.
        seeds: how many there are in every comparison; by default as many as fit.
    """
    full, short, *smaller = scales(choices[0])
    ladder = [
        (replace(full, seeds=n), short.tokens) for n in ([seeds] if seeds else range(full.seeds, 0, -1))
    ]
    ladder = [] if quick else ladder
    for scale, least in zip((short, *smaller), (short.tokens // 4, short.tokens // 4, 0), strict=True):
        ladder.append((replace(scale, seeds=seeds or 1), least))
    for chosen in choices:
        for scale, least in ladder:
            for less in with_less_recall(scale):
                yield Offer(chosen, make(less), scale.seeds), least


def fullest(
    budget: float, offered: Iterable[tuple[Offer, int]], steps: dict[Combo, Step]
) -> tuple[Offer | None, float]:
    """Returns the first comparison that fits into ``budget`` seconds, with as many tokens as fit.

    If none does, returns None and the seconds of the last, the smallest.
    """
    seconds = 0.0
    for offer, least in offered:
        planned = offer.cells()
        tokens = tokens_for(budget, planned, steps, offer.work)
        if tokens is not None and tokens >= least and recall_fits(offer.work, tokens):
            return replace(offer, work=replace(offer.work, tokens=tokens)), 0.0
        seconds = least_seconds(planned, steps, offer.work)
    return None, seconds


def suggested(seconds: float) -> str:
    """Returns a budget that leaves some room, as a user types it: ``45s``, ``12m``."""
    enough = ROOM * seconds
    return f"{15 * math.ceil(enough / 15)}s" if enough <= 105 else f"{math.ceil(enough / 60)}m"


def left_out(wanted: Offer, got: Offer) -> list[str]:
    """Returns in words what one comparison has less of than another."""
    words = []
    if got.seeds < wanted.seeds:
        words.append(f"{got.seeds} seed{'s' * (got.seeds > 1)} instead of {wanted.seeds}")
    if slots := [slot for slot in wanted.chosen if slot not in got.chosen]:
        words.append(f"no comparison of {units.listed(slots, 'or')}")
    for name, what in _NUMBERS.items():
        less, more = getattr(got.work, name), getattr(wanted.work, name)
        if 0 < less < more:
            words.append(f"{units.count(less)} {what} instead of {units.count(more)}")
    for name, what in _LISTS.items():
        missing = [value for value in getattr(wanted.work, name) if value not in getattr(got.work, name)]
        if missing:
            said = [units.count(v) if isinstance(v, int) else v.replace("_", " ") for v in missing]
            words.append(f"no {what.format(units.listed(said, 'or'))}")
    return words
