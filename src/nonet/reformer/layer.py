"""LSH attention as a mixer of the model: projections, positions, cache, and the op."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nonet.reformer.api import lsh_attention, lsh_buckets, lsh_rotations
from nonet.reformer.config import ReformerConfig
from nonet.slots import Context, Dims, LinearFactory, Mixer


class ReformerMixer(Mixer):
    """Multi-head LSH attention with one projection for queries and keys.

    Every head has its own keys and values, whatever ``dims.kv_heads`` is, since keys are the queries.
    The number of buckets is that of the model's longest context, so that a token's bucket never
    depends on how many tokens there are; the rotations that choose it are saved with the weights.

    Args:
        dims: the model around it.
        options: :class:`ReformerConfig`.
        layer: index of the layer.
        linear: makes the projections.

    Cost: ``6 H D E`` operations a token for projections and ``6 R W H D`` for attention (causal, a window
    of ``W = 2 bucket_size``); the cache holds ``H (2 D + R)`` numbers a token, and a step of decoding
    compares with all of them.
    """

    rotations: Tensor

    def __init__(self, dims: Dims, options: ReformerConfig, layer: int, linear: LinearFactory) -> None:
        super().__init__(dims, options, layer, linear)
        width = dims.heads * dims.head_dim
        self.qk_proj = linear(dims.hidden, width, bias=False)
        self.v_proj = linear(dims.hidden, width, bias=False)
        self.o_proj = linear(width, dims.hidden, bias=False)
        self.register_buffer("rotations", self._first_rotations())

    def _first_rotations(self) -> Tensor:
        return lsh_rotations(
            self.dims.head_dim,
            heads=self.dims.heads,
            n_hashes=self.options.n_hashes,
            n_buckets=self.options.n_buckets or self.dims.max_length / self.options.bucket_size,
            seed=self.options.seed + 1_000_003 * self.layer,
        )

    def init_weights(self, std: float) -> None:
        """Draws the rotations again from their seed, which a model made on the meta device lacks."""
        from transformers import initialization

        initialization.copy_(self.rotations, self._first_rotations())

    def forward(self, x: Tensor, context: Context, state: Any | None = None) -> Tensor:
        """Attends from T new tokens to those among all seen so far that hash alike.

        Raises:
            ValueError: there is a state, and ``attend`` lets later tokens move the windows of earlier ones.
        """
        if state is not None and self.options.attend != "bucket":
            raise ValueError(
                f"attend={self.options.attend!r} cannot decode from a cache, since a later token moves "
                'the boundaries of its chunks; use attend="bucket", or use_cache=False'
            )
        qk, v = (
            proj(x).unflatten(-1, (-1, self.dims.head_dim)).transpose(1, 2)
            for proj in (self.qk_proj, self.v_proj)
        )
        turn = context.rotation
        if turn is not None and not turn.of_whole:
            qk = turn(qk, context.places)
        if state is not None:
            qk, v = _grown(state, "qk", qk), _grown(state, "v", v)
        if turn is not None and turn.of_whole:  # all turn anew, and so may fall into other buckets
            qk = turn(qk, context.key_places())
            buckets = context.memo(lambda: lsh_buckets(qk, self.rotations))
        else:
            buckets = context.memo(lambda: lsh_buckets(qk[:, :, -x.shape[1] :], self.rotations))
            if state is not None:
                buckets = _grown(state, "buckets", buckets, dim=3)
        out = lsh_attention(
            qk,
            v,
            n_hashes=self.options.n_hashes,
            bucket_size=self.options.bucket_size,
            causal=self.dims.causal,
            buckets=buckets,
            attend=self.options.attend,
            alibi_slopes=context.slopes,
            key_starts=context.starts,
            key_lengths=context.ends,
            queries=x.shape[1],
            impl=self.options.impl,
        )
        return self.o_proj(out.transpose(1, 2).flatten(-2))


def _grown(state: Any, name: str, new: Tensor, dim: int = 2) -> Tensor:
    """Puts ``new`` behind what the state keeps under ``name``, and returns both."""
    kept = state.get(name)
    whole = new if kept is None else torch.cat([kept.to(new.device), new], dim=dim)
    state.put(name, whole)
    return whole
