"""A mean over seeds with its interval, and the one rule for when two of them differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Student's t: 97.5 % of the distribution with 1, 2, ... 30 degrees of freedom lies below. Beyond 30 the
# last is used, which is slightly too wide.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """What the seeds gave, at least one value.

    Attributes:
        values: one a seed.
        low: the lower end of what was measured repeatedly within the runs; None where nothing was.
        high: the upper end.
    """

    values: tuple[float, ...]
    low: float | None = None
    high: float | None = None

    @property
    def mean(self) -> float:
        """The mean over seeds."""
        return statistics.fmean(self.values)

    @property
    def half(self) -> float | None:
        """Half the width of the mean's 95 % interval (Student's t); None with one seed."""
        if len(self.values) < 2:
            return None
        return student_t(len(self.values) - 1) * math.sqrt(self.error)

    @property
    def error(self) -> float:
        """The squared standard error of the mean; needs two values."""
        return statistics.variance(self.values) / len(self.values)


def estimate(
    values: Iterable[float | None], ranges: Iterable[tuple[float, float] | None] = ()
) -> Estimate | None:
    """Returns the estimate from the values that were measured, None when there are none.

    Args:
        values: one a seed.
        ranges: of the repeats within each run; the outermost ends count.
    """
    found = tuple(float(value) for value in values if value is not None)
    if not found:
        return None
    ends = [ends for ends in ranges if ends is not None]
    if not ends:
        return Estimate(found)
    return Estimate(found, min(low for low, _ in ends), max(high for _, high in ends))


def band(values: Sequence[float]) -> tuple[float, float]:
    """Returns the 20th and 80th percentile, each between two values where it falls there."""
    several = values if len(values) > 1 else [*values, *values]
    low, _, _, high = statistics.quantiles(several, n=5, method="inclusive")
    return low, high


def student_t(degrees: float) -> float:
    """Returns the 97.5 % quantile for that many degrees of freedom, rounded down."""
    return _T[min(max(int(degrees), 1), len(_T)) - 1]


def half_of_difference(a: Estimate, b: Estimate) -> float | None:
    """Returns half the width of the 95 % interval of the difference of the means (Welch 1947).

    None when either has one value only.
    """
    n, m = len(a.values), len(b.values)
    if n < 2 or m < 2:
        return None
    total = a.error + b.error
    if total == 0:
        return 0.0
    degrees = total**2 / (a.error**2 / (n - 1) + b.error**2 / (m - 1))
    return student_t(degrees) * math.sqrt(total)


def differ(a: Estimate, b: Estimate, floor: float = 0.0) -> bool:
    """Says whether two differ by more than their spread: the rule behind every sentence and table.

    With several seeds each the difference of the means must exceed its own 95 % interval. With one seed it
    must reach ``floor``, and the ranges of what was measured repeatedly within the runs must not overlap.
    """
    gap = abs(a.mean - b.mean)
    half = half_of_difference(a, b)
    return gap >= floor and not _overlap(a, b) if half is None else gap > half


def _overlap(a: Estimate, b: Estimate) -> bool:
    (low, high), (least, most) = (
        (e.mean if e.low is None else e.low, e.mean if e.high is None else e.high) for e in (a, b)
    )
    return low <= most and least <= high
