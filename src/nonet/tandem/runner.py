"""A causal model and its memory of one text, of which the last tokens can be taken back."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel

from nonet.tandem.cache import RollbackLayer, restore, rollback_cache, snapshot
from nonet.tandem.shortlist import Shortlist

# Layers of Transformers that forget their state when several tokens at once continue from a cache.
_ONE_BY_ONE = {
    ("transformers.models.mamba.modeling_mamba", "MambaMixer"),
    ("transformers.models.falcon_mamba.modeling_falcon_mamba", "FalconMambaMixer"),
}


class Runner:
    """Runs a causal model over one text, part by part.

    Args:
        model: any causal model whose ``forward`` takes ``past_key_values`` or ``cache_params``.
        room: tokens to make room for at first.
        cache: its memory, when it is not the usual one.
        shortlist: the tokens to score, in place of all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        room: int,
        cache: Cache | None = None,
        shortlist: Shortlist | None = None,
    ) -> None:
        takes = inspect.signature(model.forward).parameters
        self.cache = rollback_cache(model, room) if cache is None else cache
        self.recurrent = not all(isinstance(layer, RollbackLayer) for layer in self.cache.layers)
        self.length = self.calls = 0
        self._model, self._shortlist = model, shortlist
        memory = "cache_params" if "cache_params" in takes else "past_key_values"
        self._options: dict[str, Any] = {memory: self.cache, "use_cache": True}
        self._keeps = "logits_to_keep" in takes
        self._one_by_one = any((type(m).__module__, type(m).__name__) in _ONE_BY_ONE for m in model.modules())
        self._mark, self._moment = 0, [None]

    def run(self, tokens: Tensor, keep: int) -> Tensor:
        """Takes in T more tokens ``(1, T)``; returns the scores ``(keep, V)`` behind the last of them."""
        parts = tokens.split(1, dim=1) if self._one_by_one and self.length else (tokens,)
        scores = [self._scores(part, min(keep, part.shape[1])) for part in parts]
        self.length += tokens.shape[1]
        self.calls += len(parts)
        return scores[0] if len(scores) == 1 else torch.cat(scores)[-keep:]

    def mark(self) -> None:
        """Remembers this moment, before which nothing will be taken back."""
        self._mark = self.length
        if self.recurrent:
            self._moment = snapshot(self.cache)

    def rollback(self, length: int) -> None:
        """Forgets all but the first ``length`` tokens; a recurrence forgets more, all since the mark."""
        if length >= self.length:
            return
        if self.recurrent:
            restore(self.cache, self._moment)
            length = self._mark
        for layer in self.cache.layers:
            if isinstance(layer, RollbackLayer):
                layer.length = length
        self.length = length

    def _scores(self, tokens: Tensor, keep: int) -> Tensor:
        if self._shortlist is not None:
            hidden = self._model.base_model(input_ids=tokens, **self._options).last_hidden_state
            return self._shortlist.scores(hidden[0, -keep:])
        only = {"logits_to_keep": keep} if self._keeps else {}
        return self._model(input_ids=tokens, **self._options, **only).logits[0, -keep:]
