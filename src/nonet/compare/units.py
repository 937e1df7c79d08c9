"""Numbers as words: one way to write each quantity, and a dash for what is missing."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nonet.compare.spread import Estimate

DASH = "\N{EN DASH}"
GAP = "\N{NO-BREAK SPACE}"  # a number and its unit stay on one line


def bits(value: float | None) -> str:
    """Bits per byte: three decimals, as far as seeds of small models agree."""
    return DASH if value is None else f"{value:.3f}"


def bits_of(found: Estimate | None) -> str:
    """Bits per byte with half the width of their interval, where there is one."""
    if found is None or found.half is None:
        return bits(found.mean if found else None)
    return f"{bits(found.mean)}{GAP}±{GAP}{bits(found.half)}"


def seconds(value: float | None) -> str:
    """A time to three digits in the unit that suits it."""
    if value is None:
        return DASH
    if value >= 120:
        return f"{_digits(value / 60)}{GAP}min"
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if value * factor >= 1:
            return f"{_digits(value * factor)}{GAP}{unit}"
    return f"{_digits(value * 1e6)}{GAP}µs"


def memory(value: float | None) -> str:
    """Bytes to three digits in binary units."""
    if value is None:
        return DASH
    for factor, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= factor:
            return f"{_digits(value / factor)}{GAP}{unit}"
    return f"{value:.0f}{GAP}B"


def count(value: float | None) -> str:
    """A whole number with commas."""
    return DASH if value is None else f"{round(value):,}"


def rounded(value: float | None, digits: int = 3) -> str:
    """A large number to so many digits, with commas."""
    if not value:
        return DASH
    return f"{round(value, digits - 1 - math.floor(math.log10(value))):,.0f}"


def rate(value: float | None) -> str:
    """A number to three digits: ``8.53``, ``28.4``."""
    return DASH if value is None else _digits(value)


def share(value: float | None) -> str:
    """A part of one as a percentage."""
    return DASH if value is None else f"{100 * value:.0f}{GAP}%"


def part(value: float) -> str:
    """A part of one that may be small: ``0.0086 %``, ``1.8 %``, ``100 %``."""
    return share(value) if value >= 0.1 else f"{100 * value:.2g}{GAP}%"


def times(value: float) -> str:
    """A ratio: ``0.61×``, ``14×``."""
    return f"{_digits(value, 2)}\N{MULTIPLICATION SIGN}"


def ratio(value: float | None) -> str:
    """A ratio of speeds, to hundredths: ``1.31×``."""
    return DASH if value is None else f"{value:.2f}\N{MULTIPLICATION SIGN}"


def listed(words: Sequence[str], joint: str = "and") -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} {joint} {words[-1]}"


def _digits(value: float, digits: int = 3) -> str:
    if value <= 0:
        return "0"
    decimals = digits - 1 - math.floor(math.log10(value))
    return f"{value:.{max(decimals, 0)}f}"
