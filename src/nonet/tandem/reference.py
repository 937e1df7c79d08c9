r"""A tandem token by token, in the fewest lines: the oracle of training in blocks and of cached drafting.

For models of the Llama family, in the dtype that they are given. Tandem transformers (2402.08644),
equations 1 to 3, with a block's start counted from zero, so that no token sees itself through the primary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def layer_states(
    model: Any, ids: Tensor, block: int, read: Sequence[Tensor] | None = None, first: int = 0
) -> list[Tensor]:
    r"""Returns the states ``(T, E)`` of each depth, from :math:`y^{(0)}`, the embeddings, to :math:`y^{(S)}`.

    Args:
        model: a causal model of the Llama family.
        ids: tokens ``(T,)``.
        block: :math:`\gamma`.
        read: :math:`\hat y^{(j)}` ``(T, E)`` for each layer; None for a model that stands alone.
        first: where the first block begins. In generation all earlier tokens are a block of their own.
    """
    base = model.model
    y: list[list[Tensor]] = [list(base.embed_tokens(ids))] + [[] for _ in base.layers]
    for i in range(len(ids)):
        k = 0 if read is None or i < first else first + (i - first) // block * block
        for j, layer in enumerate(base.layers):
            seen = [read[j][m] for m in range(k)] if read is not None else []
            seen += y[j][k : i + 1]
            y[j + 1].append(_layer(base, layer, y[j][i], torch.stack(seen), i))
    return [torch.stack(states) for states in y]


def tandem_logits(
    primary: Any,
    secondary: Any,
    ids: Tensor,
    block: int,
    weights: Sequence[Tensor],
    depths: Sequence[int],
    first: int = 0,
) -> Tensor:
    r"""Returns the secondary's logits ``(T, V)``: what it says behind each token.

    Args:
        primary: a causal model of the Llama family.
        secondary: another, with the same vocabulary.
        ids: tokens ``(T,)``.
        block: :math:`\gamma`.
        weights: of the maps :math:`F^{(j)}`, ``(E_S, E_L)`` for each layer of the secondary.
        depths: :math:`\ell(j)`, how many layers of the primary each of them reads behind.
        first: where the first block begins.
    """
    x = layer_states(primary, ids, block)
    read = [x[depth] @ weight.mT for depth, weight in zip(depths, weights, strict=True)]  # equation 1
    y = layer_states(secondary, ids, block, read, first)
    return secondary.lm_head(secondary.model.norm(y[-1]))


def linear_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    r"""Returns :math:`y_{ro} = b_o + \sum_i W_{oi} x_{ri}`, ``(..., O)``, computed in the wider dtype."""
    wide = torch.promote_types(x.dtype, weight.dtype)
    y = torch.einsum("...i,oi->...o", x.to(wide), weight.to(wide))
    return (y if bias is None else y + bias).to(x.dtype)


def _layer(base: Any, layer: Any, y: Tensor, seen: Tensor, place: int) -> Tensor:
    """Returns a layer's output for the token at ``place``, which sees the states at places 0 to its own."""
    a = layer.self_attn
    places = torch.arange(place + 1)[None]
    cos, sin = (t[0] for t in base.rotary_emb(y, places))
    query, normed = layer.input_layernorm(y), layer.input_layernorm(seen)
    q = _turn(a.q_proj(query).view(1, -1, a.head_dim), cos[-1:, None], sin[-1:, None])[0]  # (H, D)
    k = _turn(a.k_proj(normed).view(len(seen), -1, a.head_dim), cos[:, None], sin[:, None])  # (S, G, D)
    v = a.v_proj(normed).view(len(seen), -1, a.head_dim)
    group = a.num_key_value_groups
    heads = []
    for h in range(len(q)):
        p = torch.softmax(k[:, h // group] @ q[h] * a.scaling, dim=0)
        heads.append(p @ v[:, h // group])
    y = y + a.o_proj(torch.cat(heads))  # equation 2
    return y + layer.mlp(layer.post_attention_layernorm(y))  # equation 3


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-right, left], dim=-1) * sin
