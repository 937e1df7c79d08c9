"""What is measured along an axis, in a reader's words: for a plot, and for the table of its numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from nonet.compare import units

Say = Callable[[float | None], str]


@dataclass(frozen=True)
class Quantity:
    """A series of :class:`nonet.compare.summary.Entry` as a reader meets it.

    Attributes:
        series: its name.
        title: of its plot and table.
        along: what its axis counts.
        kind: a loss while training, a loss by place, a time or a memory by length; or of what is counted
            one by one, a ratio or a share.
        note: what must be known to read it.
    """

    series: str
    title: str
    along: str
    kind: Literal["curve", "place", "time", "memory", "ratio", "share"]
    note: str

    @property
    def value(self) -> str:
        """What is measured."""
        return {"curve": "bits per byte", "place": "bits per byte", "ratio": "times as fast"}.get(
            self.kind, self.kind
        )

    @property
    def say(self) -> Say:
        """Writes a value."""
        words: dict[str, Say] = {
            "time": units.seconds,
            "memory": units.memory,
            "ratio": units.ratio,
            "share": units.share,
        }
        return words.get(self.kind, units.bits)

    @property
    def say_along(self) -> Say:
        """Writes a place on the axis."""
        return units.seconds if self.series == "seconds" else units.count


_CURVE = "Validation loss during training, lower is better. The band spans the seeds."
_TIME = "Batch 1. The band spans the 20th, less what other programs took, to the 80th percentile."
_PEAK = "Batch 1. The peak above what was in use before."
QUANTITIES = (
    Quantity("tokens", "Loss over tokens", "training tokens", "curve", _CURVE),
    Quantity("seconds", "Loss over time", "seconds of training", "curve", _CURVE),
    Quantity(
        "trained",
        "Loss over trained parameters",
        "trained parameters",
        "curve",
        "Validation loss in the end. Further left and down is better.",
    ),
    Quantity("forward", "Time of a forward pass", "tokens of context", "time", _TIME),
    Quantity("backward", "Time of a forward and backward pass", "tokens of context", "time", _TIME),
    Quantity("forward_bytes", "Memory of a forward pass", "tokens of context", "memory", _PEAK),
    Quantity("backward_bytes", "Memory of a forward and backward pass", "tokens of context", "memory", _PEAK),
    Quantity("step", "Time of one more token", "tokens in the cache", "time", _TIME),
    Quantity(
        "cache_bytes",
        "Size of the cache",
        "tokens in the cache",
        "memory",
        "Batch 1. Keys and values, or a state.",
    ),
    Quantity("places", "Loss by place", "place in the context", "place", "Validation loss, lower is better."),
    Quantity(
        "ratio",
        "Speed over the primary alone",
        "tokens drafted at once",
        "ratio",
        "Tokens a second, text by text. The band spans the quartiles of the texts.",
    ),
    Quantity(
        "accepted",
        "Drafts accepted",
        "tokens drafted at once",
        "share",
        "Of all drafted tokens, the share that the primary would have written too.",
    ),
    Quantity(
        "accepted_at",
        "Drafts accepted by place",
        "place in the longest block",
        "share",
        "Of the drafted tokens that follow accepted ones only.",
    ),
)
