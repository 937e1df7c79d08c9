"""The secondary as a drafter: between rounds it reads what the primary made of the verified tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nonet.tandem.cache import RollbackLayer
from nonet.tandem.reading import TandemCache
from nonet.tandem.rounds import Drafter, Rule
from nonet.tandem.runner import Runner
from nonet.tandem.shortlist import Shortlist

if TYPE_CHECKING:
    from nonet.tandem.layer import Tandem


class TandemDrafter(Drafter):
    """Drafts with a tandem's secondary.

    Args:
        tandem: both models.
        primary: runs the primary over the same text.
        found: where the primary's last pass left its states.
        rule: chooses tokens.
        room: tokens to make room for at first.
        shortlist: the tokens to draft from, in place of all.
        stops: ends a block early.
    """

    def __init__(
        self,
        tandem: Tandem,
        primary: Runner,
        found: Mapping[int, Tensor],
        rule: Rule,
        room: int,
        shortlist: Shortlist | None = None,
        stops: Callable[[Tensor], bool] | None = None,
    ) -> None:
        self._tandem, self._primary, self._found = tandem, primary, found
        self._cache = TandemCache([RollbackLayer(room) for _ in tandem.projections.depths])
        super().__init__(Runner(tandem.secondary, room, self._cache, shortlist), rule, stops)

    def verified(self, start: int, length: int) -> None:
        """Puts what the primary knows of the tokens from ``start`` on in the place of the secondary's own."""
        self.runner.rollback(start)
        picked = self._tandem.projections.pick(self._found, self._primary.cache, start, length - start)
        places = torch.arange(start, length, device=picked[0].device)[None]
        self._tandem.read(self._cache, picked, places)
        self.runner.length = length
