"""Options of a tandem of two models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nonet.shapes import check_choice, check_positive, freeze_lists

READINGS = ("states", "keys_values")
STARTS = ("random", "identity")
LOSSES = ("ce", "distil")


@dataclass(frozen=True)
class TandemConfig:
    """Options of :class:`nonet.tandem.Tandem`.

    Attributes:
        block: tokens of a block in training; generation may use another.
        layers: for each layer of the secondary, how many of the primary's layers the states that it reads
            have passed: 0 is the embedding, the primary's depth its last layer, before the final norm. None
            spaces them evenly and ends at the top.
        reading: what is projected: ``"states"``, hidden states, of which the secondary's own norm and
            matrices then make keys and values; or ``"keys_values"``, the primary's keys and values, turned
            at their places, which become the secondary's as they are.
        start: first values of the projections: ``"random"`` with variance ``1 / width`` as in the paper, or
            ``"identity"`` where both models have one width, which a secondary that is made of the primary's
            layers can begin with.
        seed: of random first values.
        loss: ``"ce"``, cross-entropy to the text; or ``"distil"``, which adds that to the primary's
            distribution.
        balance: the share of the text in ``"distil"``.
    """

    block: int = 2
    layers: tuple[int, ...] | None = None
    reading: Literal["states", "keys_values"] = "states"
    start: Literal["random", "identity"] = "random"
    seed: int = 0
    loss: Literal["ce", "distil"] = "ce"
    balance: float = 0.5

    def __post_init__(self) -> None:
        freeze_lists(self)
        check_positive(block=self.block)
        check_choice("reading", self.reading, READINGS)
        check_choice("start", self.start, STARTS)
        check_choice("loss", self.loss, LOSSES)
        if not 0.0 <= self.balance <= 1.0:
            raise ValueError(f"balance must lie between 0 and 1; got {self.balance!r}")
