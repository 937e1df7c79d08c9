"""A causal model and its memory of one text, of which the last tokens can be taken back."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor
from transformers.cache_utils import Cache, LinearAttentionCacheLayerMixin
from transformers.modeling_utils import PreTrainedModel

from nonet.ecosystem import cache_argument
from nonet.tandem.cache import RollbackLayer, counted, is_filled, memories, restore, rollback_cache, snapshot
from nonet.tandem.shortlist import Shortlist


class Runner:
    """Runs a causal model over one text, part by part.

    Args:
        model: any causal model whose ``forward`` takes a cache.
        room: tokens to make room for at first.
        cache: its memory, when it is not the usual one.
        shortlist: the tokens to score, instead of all.

    Attributes:
        length: tokens read so far.
        before: places that the cache holds before the first token: those of a soft prompt.
        calls: passes of the model.

    Raises:
        ValueError: the model takes no cache.
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
        self.length = self.before = self.calls = 0
        self._model, self._shortlist = model, shortlist
        self._options = {**cache_argument(model.forward, self.cache), "use_cache": True}
        self._keeps, self._told_places = "logits_to_keep" in takes, "position_ids" in takes
        self._one_by_one = _has_foreign_states(model, self.cache)
        self._mark, self._moment = 0, [None]

    def run(self, tokens: Tensor, keep: int) -> Tensor:
        """Takes in T more tokens ``(1, T)``; returns the scores ``(keep, V)`` behind the last of them."""
        parts = tokens.split(1, dim=1) if self._one_by_one and self.length else (tokens,)
        scores = []
        for part in parts:
            scores.append(self._scores(part, min(keep, part.shape[1])))
            if self.length == 0:
                self._look_at_cache(part.shape[1])
            self.length += part.shape[1]
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
                layer.length = self.before + length
        self.length = length

    def _look_at_cache(self, read: int) -> None:
        """Looks at what the first pass, over ``read`` tokens, has left in the cache."""
        self.before = counted(self.cache, read) - read
        if not all(map(is_filled, memories(self.cache))):
            raise ValueError(
                f"{type(self._model).__name__} keeps what it has read outside of its cache, from where no "
                "token can be taken back; choose another model"
            )

    def _scores(self, tokens: Tensor, keep: int) -> Tensor:
        options = self._options
        if self._told_places:  # as generate does: some models count wrongly by themselves
            places = torch.arange(self.length, self.length + tokens.shape[1], device=tokens.device)
            options = options | {"position_ids": places[None]}
        if self._shortlist is not None:
            hidden = self._model.base_model(input_ids=tokens, **options).last_hidden_state
            return self._shortlist.scores(hidden[0, -keep:])
        only = {"logits_to_keep": keep} if self._keeps else {}
        return self._model(input_ids=tokens, **options, **only).logits[0, -keep:]


def _has_foreign_states(model: PreTrainedModel, cache: Cache) -> bool:
    """Whether a layer keeps a recurrent state, and its code may not continue it by several tokens at once.

    Layers that :func:`nonet.accelerate` serves can; of others it is not known, so they go token by token.
    """
    states = sum(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)
    return states > sum(hasattr(module, "nonet_impl") for module in model.modules())
