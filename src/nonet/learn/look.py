"""How chapters and the ledger draw: a colour, dash and marker a method, on no background of their own.

Colours are those of the comparison's report. No two methods are told apart by colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter, StrMethodFormatter

from nonet.compare.looks import COLOURS

INK = "#767676"  # words and axes
FAINT = "#8a8a8a"  # grids, by a third
_STYLE: dict[Any, Any] = {
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "font.size": 11,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.33,
    "grid.linewidth": 0.6,
    "lines.linewidth": 2.0,
    "lines.markersize": 6.0,
    "legend.frameon": False,
    "svg.hashsalt": "nonet",  # the same picture gives the same file
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color"),
        INK,
    ),
    "grid.color": FAINT,
}


@dataclass(frozen=True)
class Look:
    """How a method is drawn: ``**look.line`` for lines, ``look.colour`` for all else."""

    colour: str
    dash: str | tuple[int, tuple[int, ...]]
    marker: str

    @property
    def line(self) -> dict[str, Any]:
        """The arguments of a line."""
        return {"color": self.colour, "linestyle": self.dash, "marker": self.marker}


# By the name of the method; "baseline" is whatever a method is held against.
LOOKS: Mapping[str, Look] = {
    "flash": Look(COLOURS["flash"], "-", "o"),
    "matmulfree": Look(COLOURS["matmulfree"], (0, (6, 2)), "s"),
    "mamba": Look(COLOURS["mamba"], (0, (2, 1)), "^"),
    "tandem": Look(COLOURS["tandem"], (0, (6, 2, 1, 2)), "D"),
    "position": Look(COLOURS["position"], (0, (4, 1)), "P"),
    "prompt": Look(COLOURS["prompt"], (0, (8, 3)), "v"),
    "lora": Look(COLOURS["lora"], (0, (1, 1)), "X"),
    "reformer": Look(COLOURS["reformer"], (0, (5, 1, 1, 1, 1, 1)), "p"),
    "linformer": Look(COLOURS["linformer"], (0, (3, 3)), "h"),
    "baseline": Look(COLOURS["baseline"], (0, (2, 3)), "."),
}


def canvas(
    width: float = 7.2, height: float = 3.4, *, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, Any]:
    """Returns a figure and its axes, as ``matplotlib.pyplot.subplots`` does, and sets the session's style."""
    plt.rcParams.update(_STYLE)
    return plt.subplots(rows, columns, figsize=(width, height), **options)


def draw_plot(axes: Axes, plot: Mapping[str, Any], method: str) -> None:
    """Draws the plot of a finding: the first curve as the method, others in the colours that are left.

    Args:
        axes: to draw on.
        plot: of a row of the ledger, or ``dataclasses.asdict`` of a :class:`nonet.claim.Plot`.
        method: whose plot it is.
    """
    order = [method, "baseline", *(name for name in LOOKS if name not in (method, "baseline"))]
    for name, curve in zip(order, plot["curves"], strict=False):
        axes.plot(curve["x"], curve["y"], label=curve["name"], **LOOKS[name].line)
        if curve["low"] is not None:
            axes.fill_between(
                curve["x"], curve["low"], curve["high"], color=LOOKS[name].colour, alpha=0.2, lw=0
            )
    axes.set(xlabel=plot["x"], ylabel=plot["y"])
    if plot["log_x"]:
        axes.set_xscale("log", base=2)
        places = sorted({x for curve in plot["curves"] for x in curve["x"]})
        axes.set_xticks(places[:: -(-len(places) // 6)])  # at most six
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
    if plot["log_y"]:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
    axes.legend()
