"""What models remember while one drafts and the other verifies: memories that can be taken back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicLayer,
    LinearAttentionCacheLayerMixin,
)
from transformers.modeling_utils import PreTrainedModel


class RollbackLayer(CacheLayerMixin):
    """One layer's keys and values in buffers with room to spare, of which the first ``length`` tokens count.

    Taking tokens back is setting ``length``; nothing is copied or joined, and a buffer that is full is
    replaced by one of twice the size.

    Args:
        room: tokens that the first buffer holds.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.length = room, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Makes buffers with room for ``room`` tokens and what they hold already."""
        for name, like in (("keys", key_states), ("values", value_states)):
            old = getattr(self, name)
            new = like.new_empty(*like.shape[:2], self.room, like.shape[3])
            if old is not None:
                new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes T tokens behind the others; returns all keys and values, as views of the buffers."""
        new = key_states.shape[2]
        end = self.length + new
        if self.keys is None or end > self.room:
            self.room = max(self.room if self.keys is None else 2 * self.room, end)
            self.lazy_initialization(key_states, value_states)
        self.keys.narrow(2, self.length, new).copy_(key_states)
        self.values.narrow(2, self.length, new).copy_(value_states)
        self.length = end
        return self.keys.narrow(2, 0, end), self.values.narrow(2, 0, end)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns the length and offset that a mask over all tokens has."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Returns the number of tokens that count."""
        return self.length

    def get_max_length(self) -> int:
        """Returns -1: there is no limit."""
        return -1

    def reset(self) -> None:
        """Forgets everything, and keeps the buffers."""
        self.length = 0


def rollback_cache(model: PreTrainedModel, room: int) -> Cache:
    """Returns an empty cache for a model, whose layers of keys and values can be rolled back.

    Args:
        model: decides the kind of each layer, by its configuration. Layers that are no plain keys and values
            (recurrences, sliding windows) stay as Transformers makes them; see :func:`snapshot`.
        room: tokens to make room for at first.
    """
    made = DynamicCache(config=model.config).layers
    return Cache(layers=[RollbackLayer(room) if type(layer) is DynamicLayer else layer for layer in made])


def counted(cache: Cache, otherwise: int) -> int:
    """Returns how many places a cache holds; ``otherwise`` when none of its layers counts them."""
    lengths = [layer.length for layer in cache.layers if isinstance(layer, RollbackLayer)]
    return lengths[0] if lengths else otherwise


def memories(cache: Cache) -> list[Any]:
    """Returns the layers of a cache that keep something; others stand for layers that need no memory."""
    return [x for x in cache.layers if isinstance(x, CacheLayerMixin | LinearAttentionCacheLayerMixin)]


def is_filled(layer: Any) -> bool:
    """Whether a layer of a cache holds anything of the tokens that were read."""
    return getattr(layer, "is_initialized", False) or any(getattr(layer, "has_previous_state", {}).values())


def snapshot(cache: Cache) -> list[Any]:
    """Returns what is needed to take back the layers that do not roll back by their length.

    A layer with a ``snapshot`` of its own, as those of nonet's recurrences have, is asked for it. Of any
    other the attributes are copied, tensors by value, since Transformers writes states in place.
    """
    return [
        None
        if isinstance(layer, RollbackLayer)
        else layer.snapshot()
        if hasattr(layer, "snapshot")
        else _copied(vars(layer))
        for layer in cache.layers
    ]


def restore(cache: Cache, kept: list[Any]) -> None:
    """Goes back to the moment of a snapshot, which can be used once."""
    for layer, moment in zip(cache.layers, kept, strict=True):
        if hasattr(layer, "restore"):
            layer.restore(moment)
        elif not isinstance(layer, RollbackLayer):
            vars(layer).clear()
            vars(layer).update(moment)


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(inner) for name, inner in value.items()}
    return [_copied(inner) for inner in value] if isinstance(value, list) else value
