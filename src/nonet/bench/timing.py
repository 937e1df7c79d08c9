"""Two calls timed in turns, and the spread of what was found."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

Call = Callable[[], Any]

_SAMPLE = 1e-3  # seconds: a sample repeats a shorter call, so that reading the clock costs nothing beside it
_MOST = 1000  # calls in a sample
_SLOW = 5.0  # seconds: a call that takes longer is not warmed up twice


@dataclass(frozen=True)
class Effort:
    """How long two calls are timed: until ``rounds`` and ``seconds`` are both reached.

    Slow calls stop earlier: at ``least`` rounds once ``patience`` seconds have gone by.
    """

    rounds: int = 15
    seconds: float = 2.0
    least: int = 3
    patience: float = 20.0

    def enough(self, rounds: int, seconds: float) -> bool:
        """Says whether this many rounds and seconds will do."""
        reached = rounds >= self.rounds and seconds >= self.seconds
        return reached or (rounds >= self.least and seconds >= self.patience)


FULL = Effort()
QUICK = Effort(rounds=2, seconds=0.0)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns the median and the first and third quartile, each between two values where it falls there."""
    if not values:
        raise ValueError("values must hold at least one number; got none")
    several = values if len(values) > 1 else [*values, *values]
    low, middle, high = statistics.quantiles(several, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


class Timed(NamedTuple):
    """A call, and what has to be done before each sample of it, off the clock."""

    call: Call
    before: Call = lambda: None


def in_turns(calls: Sequence[Timed], effort: Effort) -> list[list[float]]:
    """Returns the seconds of each call in each round: first, second, first, second, ...

    Each is called before, which compiles and allocates, and says how often a sample repeats it.
    """
    numbers = [_number(timed) for timed in calls]
    seconds: list[list[float]] = [[] for _ in calls]
    with _no_garbage():
        began = time.perf_counter()
        while not effort.enough(len(seconds[0]), time.perf_counter() - began):
            for timed, number, found in zip(calls, numbers, seconds, strict=True):
                found.append(_seconds(timed, number))
    return seconds


def _number(timed: Timed) -> int:
    """Warms a call up; returns how often a sample repeats it."""
    if _seconds(timed, 1) > _SLOW:
        return 1
    return min(_MOST, max(1, round(_SAMPLE / max(_seconds(timed, 1), 1e-9))))


def _seconds(timed: Timed, number: int) -> float:
    timed.before()
    call = timed.call
    began = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - began) / number


@contextmanager
def _no_garbage() -> Iterator[None]:
    """The collector rests, as in the standard library's ``timeit``."""
    was = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
