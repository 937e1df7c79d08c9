"""PyTorch's own fused attention; bias and windows reach it as a mask of the scores' size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nonet.shapes import zeroed


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool,
    scale: float,
    window: int | None,
    softcap: float | None,
    alibi_slopes: Tensor | None,
    key_lengths: Tensor | None,
    key_starts: Tensor | None,
    query_lengths: Tensor | None,
    return_lse: bool,
) -> Tensor:
    """Calls ``scaled_dot_product_attention`` with the cheapest mask that says what is asked."""
    if scale == 0:  # which the fused operator multiplies its causal mask by, minus infinity
        q, scale = q * 0.0, 1.0
    queries, keys = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    bounded = any(x is not None for x in (window, key_lengths, key_starts, query_lengths))
    # A single query at the end sees every key, and a square causal mask is built in.
    if alibi_slopes is None and not bounded and (not causal or queries in (1, keys)):
        return scaled_dot_product_attention(
            q, k, v, is_causal=causal and queries > 1, scale=scale, enable_gqa=grouped
        )
    distance, seen = _mask(q, keys, causal, window, key_lengths, key_starts, query_lengths)
    bias: Tensor = seen
    if alibi_slopes is not None:
        # In the slopes' own dtype, since bfloat16 cannot tell 257 from 256.
        bias = -alibi_slopes.view(-1, q.shape[1], 1, 1) * distance
        bias = bias.to(q.dtype).masked_fill(~seen, -torch.inf)
    # Weights of zero do not hide NaN, so what nobody sees is zero too.
    blind, unseen = ~seen.any(-1, keepdim=True), ~seen.any(-2).unsqueeze(-1)
    q, k, v = zeroed(q, blind), zeroed(k, unseen), zeroed(v, unseen)
    out = scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale, enable_gqa=grouped)
    return out.masked_fill(blind, 0.0)


def flash_attention_varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, **options: Any
) -> Tensor:
    """Calls :func:`flash_attention` once a sequence."""
    ends_q, ends_k = cu_seqlens_q.tolist(), cu_seqlens_k.tolist()
    outs = []
    for b in range(len(ends_q) - 1):
        rows, cols = slice(ends_q[b], ends_q[b + 1]), slice(ends_k[b], ends_k[b + 1])
        one = (x.transpose(0, 1)[None] for x in (q[rows], k[cols], v[cols]))
        out = flash_attention(*one, key_lengths=None, key_starts=None, query_lengths=None, **options)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def _mask(
    q: Tensor,
    keys: int,
    causal: bool,
    window: int | None,
    key_lengths: Tensor | None,
    key_starts: Tensor | None,
    query_lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns the distances and which keys are seen, broadcastable to (B, H, T, S)."""
    j = torch.arange(keys, device=q.device)
    n = torch.arange(q.shape[2], device=q.device)[:, None]
    i = n + (keys if key_lengths is None else key_lengths.view(-1, 1, 1, 1))
    i = i - (q.shape[2] if query_lengths is None else query_lengths.view(-1, 1, 1, 1))
    signed = i - j
    seen = signed >= 0 if causal else torch.ones_like(signed, dtype=torch.bool)
    if window is not None:
        seen = seen & (signed.abs() < window)
    if key_lengths is not None:
        seen = seen & (j < key_lengths.view(-1, 1, 1, 1))
    if key_starts is not None:
        seen = seen & (j >= key_starts.view(-1, 1, 1, 1))
    if query_lengths is not None:
        seen = seen & (n < query_lengths.view(-1, 1, 1, 1))
    return signed.abs(), seen
