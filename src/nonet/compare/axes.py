"""The axes of a plot: scale, ticks and labels of what is measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from nonet.compare.quantities import Quantity

Spec = dict[str, Any]
MIB = 2.0**20
_TIME_LABEL = (
    "datum.value < 1e-3 ? format(datum.value * 1e6, '~r') + ' µs' : "
    "datum.value < 1 ? format(datum.value * 1e3, '~r') + ' ms' : format(datum.value, '~r') + ' s'"
)
# Within a decade, from coarse to fine, and how many ticks are enough.
_STEPS: tuple[tuple[Sequence[float], int], ...] = (
    ((1,), 3),
    ((1, 2, 5), 2),
    (range(1, 10), 2),
    ([n / 10 for n in range(10, 100)], 2),
    ([n / 100 for n in range(100, 1000)], 1),
)


def x_axis(quantity: Quantity, records: Sequence[dict[str, Any]]) -> Spec:
    """Returns what is measured along: lengths, steps, seconds, places."""
    axis: Spec = {"labelOverlap": "greedy", "format": ",d"}
    found = [record["x"] for record in records]
    if quantity.kind == "place":
        return {
            "title": quantity.along,
            "scale": {"nice": False, "padding": 10},
            "axis": {**axis, "tickCount": 8},
        }
    if quantity.kind in ("ratio", "share"):  # few whole numbers
        return {
            "title": quantity.along,
            "scale": {"zero": False, "nice": False, "padding": 10},
            "axis": {**axis, "values": sorted(set(found))},
        }
    if quantity.kind == "curve":
        axis |= {
            "values": log_ticks(min(found), max(found)),
            "format": ",~r" if quantity.series == "seconds" else "~s",
        }
    else:
        axis |= {"values": sorted(set(found))}
    scale = {"type": "log", "nice": False, "padding": 10}
    return {"title": quantity.along, "scale": scale, "axis": axis}


def y_axis(quantity: Quantity, records: Sequence[dict[str, Any]]) -> Spec:
    """Returns what is measured."""
    if quantity.kind in ("curve", "place", "ratio"):
        return {
            "title": quantity.value,
            "scale": {"zero": False, "padding": 6},
            "axis": {"tickCount": 6},
        }
    if quantity.kind == "share":
        axis = {"format": ".0%", "tickCount": 5, "grid": True}
        return {"title": quantity.value, "scale": {"domain": [0, 1]}, "axis": axis}
    unit = MIB if quantity.kind == "memory" else 1.0
    low, high = (edge(r[name] for r in records) / unit for edge, name in ((min, "low"), (max, "high")))
    label = f"format(datum.value / {MIB:.0f}, ',~r') + ' MiB'" if quantity.kind == "memory" else _TIME_LABEL
    return {
        "title": quantity.value,
        "scale": {"type": "log", "nice": False, "padding": 6},
        "axis": {"labelExpr": label, "values": [tick * unit for tick in log_ticks(low, high)]},
    }


def log_ticks(low: float, high: float) -> list[float]:
    """Returns round numbers from low to high for a logarithmic axis, the coarsest that are enough."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for steps, enough in _STEPS:
        ticks = [float(f"{step * 10.0**decade:.3g}") for decade in decades for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= enough:
            break
    return ticks or [low]
