"""From which length on a mixer costs less than exact attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from nonet.compare import units
from nonet.compare.spread import Estimate, differ


class Point(NamedTuple):
    """A measured value at x, the range of its repetitions, and the values that it is the mean of."""

    x: float
    y: float
    low: float
    high: float
    values: tuple[float, ...] = ()

    @property
    def estimate(self) -> Estimate:
        """The value with its spread, as two are compared."""
        return Estimate(self.values or (self.y,), self.low, self.high)


@dataclass(frozen=True)
class Crossover:
    """How a mixer's cost compares with the reference's over the lengths at which both were measured.

    Attributes:
        kind: cheaper at every length, from ``length`` on, dearer at ``longest``, or level there.
        length: from which on it is cheaper: interpolated between two lengths at which the costs clearly
            differ, or else the first at which it clearly is; None unless ``kind`` is ``"from"``.
        level: the first and the last of the lengths below ``length``, or up to ``longest``, at which the
            costs differ by no more than their spread; None where there are none.
        dearer: the last length below ``length`` at which it clearly costs more, None where there is none.
        longest: the longest length measured of both.
        ratio: cost over the reference's at ``longest``.
    """

    kind: Literal["always", "from", "never", "level"]
    length: float | None
    level: tuple[float, float] | None
    dearer: float | None
    longest: float
    ratio: float

    def __str__(self) -> str:
        """``from about 700``, ``from 2,048, level from 512 to 1,024``, ``always`` or ``none up to 1,024``."""
        if self.kind == "never":
            return f"none up to {units.count(self.longest)}"
        words = "" if self.kind == "level" else self.start
        if self.level is None:
            return words
        first, last = map(units.count, self.level)
        level = f"level at {last}" if first == last else f"level from {first} to {last}"
        return f"{words}, {level}" if words else level

    @property
    def start(self) -> str:
        """From where on it costs less: ``always``, ``from about 700``, ``from 2,048``."""
        if self.kind == "always":
            return "always"
        return (
            f"from {units.count(self.length)}"
            if self.level
            else f"from about {units.rounded(self.length, 2)}"
        )


def crossover(mine: Sequence[Point], reference: Sequence[Point]) -> Crossover | None:
    """Returns where ``mine`` becomes cheaper than ``reference`` and stays so; None with no common length.

    Lengths at which the two do not differ by more than their spread are level and decide nothing. Between
    two lengths both costs are taken as straight lines in log-log, as powers of the length are.
    """
    theirs = {point.x: point for point in reference}
    pairs = sorted((p, theirs[p.x]) for p in mine if p.x in theirs and min(p.y, theirs[p.x].y) > 0)
    if not pairs:
        return None
    signs = [_sign(p, q) for p, q in pairs]
    last, other = pairs[-1]
    tail = _run_before(signs, len(signs))  # where the last run of equal signs begins
    level: tuple[float, float] | None = None
    dearer = length = None
    kind: Literal["always", "from", "never", "level"] = "never"
    if signs[-1] == 0:
        kind, level = "level", (pairs[tail][0].x, last.x)
    elif signs[-1] < 0 and tail == 0:
        kind = "always"
    elif signs[-1] < 0:
        kind, begin = "from", tail
        if signs[tail - 1] == 0:
            begin = _run_before(signs, tail)
            level = (pairs[begin][0].x, pairs[tail - 1][0].x)
        dearer = pairs[begin - 1][0].x if begin and signs[begin - 1] > 0 else None
        length = pairs[tail][0].x if level else _meeting(pairs[tail - 1], pairs[tail])
    return Crossover(kind, length, level, dearer, last.x, last.y / other.y)


def _sign(mine: Point, other: Point) -> int:
    """-1 where ``mine`` clearly costs less, 1 where it clearly costs more, 0 within the spread."""
    if not differ(mine.estimate, other.estimate):
        return 0
    return -1 if mine.y < other.y else 1


def _run_before(signs: Sequence[int], end: int) -> int:
    """Returns where the run of equal signs that ends before ``end`` begins."""
    begin = end - 1
    while begin and signs[begin - 1] == signs[end - 1]:
        begin -= 1
    return begin


def _meeting(before: tuple[Point, Point], after: tuple[Point, Point]) -> float:
    """Returns the length between two at which the costs are equal."""
    (x0, gap0), (x1, gap1) = ((math.log(p.x), math.log(p.y / q.y)) for p, q in (before, after))
    return math.exp(x0 + (x1 - x0) * gap0 / (gap0 - gap1))
