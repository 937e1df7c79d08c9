"""What a mixer remembers between calls, in the shape that Transformers' ``generate`` asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, StaticLayer


class StateLayer(CacheLayerMixin):
    """One layer's memory as named tensors, the batch on the first axis of each.

    The mixer reads with :meth:`get` and writes with :meth:`put`; the model counts tokens with
    :meth:`advance`. Beam search reorders rows. Nothing can be cropped, since a recurrence does not
    run backwards: :meth:`snapshot` and :meth:`restore` go back to an earlier moment instead.
    """

    _layer_type = "nonet_state"
    supports_early_init = False

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tensors: dict[str, Tensor] = {}
        self.seen = 0

    def get(self, name: str) -> Tensor | None:
        """Returns the tensor kept under ``name``, or None before the first call."""
        return self.tensors.get(name)

    def put(self, name: str, value: Tensor) -> None:
        """Keeps a tensor under ``name``."""
        self.tensors[name] = value
        self.is_initialized = True

    def advance(self, tokens: int) -> None:
        """Counts tokens that the mixer has taken in."""
        self.seen += tokens

    def snapshot(self) -> tuple[dict[str, Tensor], int]:
        """Returns what is needed to come back to this moment; mixers replace tensors, never write them."""
        return dict(self.tensors), self.seen

    def restore(self, snapshot: tuple[dict[str, Tensor], int]) -> None:
        """Goes back to the moment of a snapshot."""
        tensors, self.seen = snapshot
        self.tensors = dict(tensors)

    @property
    def nbytes(self) -> int:
        """Bytes that the tensors take."""
        return sum(t.nbytes for t in self.tensors.values())

    def get_seq_length(self) -> int:
        """Returns the number of tokens seen."""
        return self.seen

    def get_max_length(self) -> int:
        """Returns -1: there is no limit."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns the length and offset that a mask over all tokens would have."""
        return self.seen + query_length, 0

    def reset(self) -> None:
        """Forgets everything."""
        self.tensors, self.seen, self.is_initialized = {}, 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Takes the rows ``beam_idx`` of every tensor, as beam search asks."""
        self._rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows ``indices`` of every tensor."""
        self._rows(lambda t: t[indices.to(t.device)])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row ``repeats`` times."""
        self._rows(lambda t: t.repeat_interleave(repeats, dim=0))

    def offload(self) -> None:
        """Moves the tensors to the CPU."""
        self._rows(lambda t: t.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        """Does nothing: a mixer moves what it reads to where it computes."""

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Does nothing: the first call of the mixer fills the state."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Raises TypeError: this layer keeps named tensors, not keys and values."""
        raise TypeError("StateLayer keeps named tensors; use get and put")

    def _rows(self, change: Any) -> None:
        self.tensors = {name: change(t) for name, t in self.tensors.items()}


def prepare_cache(cache: Cache, config: PreTrainedConfig, stateful: Sequence[bool]) -> None:
    """Gives an empty ``DynamicCache()`` the layers of a model, and checks those of any other cache.

    Args:
        cache: what a call was given.
        config: of the model.
        stateful: for each of its layers, whether its mixer keeps a :class:`StateLayer`.

    Raises:
        TypeError: ``cache`` is no Cache of Transformers.
        ValueError: its layers are not those that the model needs.
    """
    if not isinstance(cache, Cache):
        raise TypeError(f"cache must be a DynamicCache(config=model.config); got {type(cache).__name__}")
    if isinstance(cache, DynamicCache) and not cache.layers:
        cache.layers = DynamicCache(config=config).layers
    found = cache.layers
    fits = len(found) == len(stateful) and not any(isinstance(layer, StaticLayer) for layer in found)
    if not fits or any(isinstance(a, StateLayer) != b for a, b in zip(found, stateful, strict=True)):
        kinds = ", ".join(dict.fromkeys(type(layer).__name__ for layer in found)) or "none"
        raise ValueError(
            f"cache must be a DynamicCache(config=model.config), which has the {len(stateful)} layers that "
            f"this model needs; got a {type(cache).__name__} of {len(found)} layers ({kinds})"
        )
