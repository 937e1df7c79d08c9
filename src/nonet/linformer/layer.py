"""Linformer as a mixer of the model, and as a layer of its own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from nonet.linformer.api import block_linformer_attention, linformer_attention
from nonet.linformer.blocks import recall, remember
from nonet.linformer.config import LinformerConfig
from nonet.linformer.rows import shift
from nonet.shapes import check_shape, divides
from nonet.slots import Context, Dims, LinearFactory, Mixer


class Projections(nn.Module):
    """The learned matrices E and F over the length of a text, or of a block.

    First values are uniform with variance ``1 / (K + L)``, as in the authors' code (Xavier with a gain of
    ``1 / sqrt(2)``): numbers of a slot then vary nearly as much as those of a token, by ``L / (K + L)``.

    Args:
        shape: ``(K, L)`` for all heads or ``(G, K, L)``.
        tied: use E for values too.
    """

    def __init__(self, shape: tuple[int, ...], tied: bool) -> None:
        super().__init__()
        self.e = nn.Parameter(torch.empty(shape))
        self.f = None if tied else nn.Parameter(torch.empty(shape))
        self.init_weights()

    def init_weights(self, std: float | None = None) -> None:
        """Gives E and F their first values; ``std``, that of a model's weights, has no part in them."""
        bound = math.sqrt(3 / sum(self.e.shape[-2:]))
        for matrix in self.parameters():
            nn.init.uniform_(matrix, -bound, bound)

    def forward(self) -> tuple[Tensor, Tensor]:
        """Returns E and F."""
        return self.e, self.e if self.f is None else self.f


class LinformerMixer(Mixer):
    """Attention to a few learned sums over the tokens, in place of the tokens.

    In an encoder each layer attends to K slots that sum over the whole text (the paper's form). In a
    language model it attends to K slots of each finished block and to the tokens of its own block (our
    block-causal form). Blocks begin at a row's first real token, so that padding on the left changes
    nothing.

    Rotary positions turn an encoder's queries and keys at their own places before the projection; in a
    language model slots are sums of keys that have not been turned, and turn at the middle of their block.

    Args:
        dims: the model around it; an encoder takes texts of up to ``max_length`` tokens.
        options: :class:`LinformerConfig`.
        layer: index of the layer.
        linear: makes the projections of tokens.

    Cost: ``2 (2 H + 2 G) D E`` operations a token for projections, ``2 G K D`` for each of the two sums,
    and ``4 H D`` for each key that a query sees: K in an encoder, ``K t / c + c`` at most at place t of a
    language model, whose cache grows by ``2 G K D`` numbers every c tokens.
    """

    options: LinformerConfig

    def __init__(self, dims: Dims, options: LinformerConfig, layer: int, linear: LinearFactory) -> None:
        super().__init__(dims, options, layer, linear)
        self.q_proj = linear(dims.hidden, dims.heads * dims.head_dim, bias=False)
        self.k_proj = linear(dims.hidden, dims.kv_heads * dims.head_dim, bias=False)
        self.v_proj = linear(dims.hidden, dims.kv_heads * dims.head_dim, bias=False)
        self.o_proj = linear(dims.heads * dims.head_dim, dims.hidden, bias=False)
        self.projections = None
        if options.sharing != "layerwise":
            heads = (dims.kv_heads,) if options.sharing == "none" else ()
            shape = (*heads, *_slots_and_length(dims, options))
            self.projections = Projections(shape, tied=options.sharing == "key-value")

    @classmethod
    def build_shared(cls, dims: Dims, options: LinformerConfig, linear: LinearFactory) -> Projections | None:
        """Returns the one matrix of all layers, when that is how they share."""
        return _one_for_all(dims, options) if options.sharing == "layerwise" else None

    def forward(self, x: Tensor, context: Context, state: Any | None = None) -> Tensor:
        """Attends from T new tokens to the slots and tokens that they may see."""
        q, k, v = (
            proj(x).unflatten(-1, (-1, self.dims.head_dim)).transpose(1, 2)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        # Under autocast the projections of tokens are narrower than these parameters.
        e, f = (m.to(k.dtype) for m in (self.projections or context.shared["linformer"])())  # type: ignore[index]
        if self.dims.causal:
            out = self._causal(q, k, v, e, f, context, state)
        else:
            out = self._whole(q, k, v, e, f, context)
        return self.o_proj(out.transpose(1, 2).flatten(-2))

    def _whole(self, q: Tensor, k: Tensor, v: Tensor, e: Tensor, f: Tensor, context: Context) -> Tensor:
        if context.slopes is not None:
            raise ValueError(
                "an encoder of linformer takes no linear bias (alibi): its slots sum over the whole text, so "
                "they stand at no distance; choose another position, or another mixer"
            )
        if context.rotation is not None:
            q, k = (context.rotation(x, context.places) for x in (q, k))
        ends, starts, impl = context.ends, context.starts, self.options.impl
        return linformer_attention(q, k, v, e, f, key_lengths=ends, key_starts=starts, impl=impl)

    def _causal(
        self, q: Tensor, k: Tensor, v: Tensor, e: Tensor, f: Tensor, context: Context, state: Any | None
    ) -> Tensor:
        size, new = self.options.block_size, q.shape[2]
        lead = None  # padding of each row before its first real token
        if context.starts is not None:
            lead = (context.starts - context.past).clamp(0, new)
            q, k, v = (shift(x, lead) for x in (q, k, v))
        blocks = recall(state, k, v, e, f, size)
        if state is not None:
            real = context.real()
            count = q.new_full((len(q),), new, dtype=torch.long) if real is None else real.sum(1)
            remember(state, blocks, count, context.past + new, size)
        k, slot_k = blocks.k, blocks.slot_k
        if context.rotation is not None:
            q, k, slot_k = blocks.turned(q, context.rotation, size)
        out = block_linformer_attention(
            q,
            k,
            blocks.v,
            slot_k,
            blocks.slot_v,
            block_size=size,
            past=blocks.past,
            alibi_slopes=context.slopes,
            impl=self.options.impl,
        )
        return out if lead is None else shift(out, -lead)


class LinformerSelfAttention(nn.Module):
    """The paper's encoder layer on its own: ``(B, T, E) -> (B, T, E)``, every token sees every other.

    Args:
        E: width of the model.
        heads: H, a divisor of E.
        length: L, the longest text.
        k: slots; the paper finds a quarter of the length enough.
        sharing: ``"none"``, ``"headwise"``, ``"key-value"`` or ``"layerwise"``, as in
            :class:`LinformerConfig`.
        shared: with ``"layerwise"``, the ``shared`` of the layer to share with; None for a first layer.
        impl: the implementation, or ``"auto"``.

    Raises:
        ValueError: an option is wrong.

    Cost: ``8 E^2 + 8 k E`` operations a token. Source: Wang et al. 2020 (2006.04768), section 4.
    """

    def __init__(
        self,
        E: int,
        heads: int,
        length: int,
        k: int,
        *,
        sharing: str = "headwise",
        shared: nn.ModuleDict | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        width = divides("heads", heads, "E", E)
        dims = Dims(E, heads, heads, width, layers=1, max_length=length, causal=False)
        options = LinformerConfig(slots=k, sharing=sharing, impl=impl)
        if shared is not None and sharing != "layerwise":
            raise ValueError(f"shared is for sharing='layerwise'; got {sharing!r}")
        self.mixer = LinformerMixer(dims, options, 0, nn.Linear)
        if sharing == "layerwise" and shared is None:
            shared = nn.ModuleDict({"linformer": _one_for_all(dims, options)})
        self.shared = shared

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Returns what each token learns of all; ``lengths`` (B,) counts the real tokens of each row."""
        check_shape("x", x, "B T E", {"E": self.mixer.dims.hidden})
        places = torch.arange(x.shape[1], device=x.device)[None]
        return self.mixer(x, Context(places, ends=lengths, shared=self.shared))


def _one_for_all(dims: Dims, options: LinformerConfig) -> Projections:
    return Projections(_slots_and_length(dims, options), tied=True)


def _slots_and_length(dims: Dims, options: LinformerConfig) -> tuple[int, int]:
    """Returns K and L: a language model projects blocks, an encoder texts."""
    length = options.block_size if dims.causal else dims.max_length
    return options.slots or max(1, length // 4), length
