r"""Exact attention in the fewest lines: the oracle of every faster path.

Runs in the dtype that it is given, so that float64 inputs give the exact answer and bfloat16 inputs
the answer of plain eager PyTorch. Dao et al. 2022 (FlashAttention), section 2.2; the rules for masks
are those of the authors' package.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
) -> Tensor | tuple[Tensor, Tensor]:
    """Returns ``softmax(scale q k^T + bias) v`` and, if asked, the log-sum-exp of each row."""
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    ends = q.new_full((batch,), keys, dtype=torch.long) if key_lengths is None else key_lengths
    starts = torch.zeros_like(ends) if key_starts is None else key_starts
    counts = torch.full_like(ends, queries) if query_lengths is None else query_lengths
    ends, starts, counts = (x[:, None, None, None] for x in (ends, starts, counts))
    j, n = torch.arange(keys, device=q.device), torch.arange(queries, device=q.device)[:, None]
    i = n + ends - counts  # the place of query n among the keys: the mask's bottom right corner
    seen = (j < ends) & (j >= starts) & (n < counts)
    if causal:
        seen = seen & (j <= i)
    if window is not None:
        seen = seen & ((i - j).abs() < window)

    # What nobody sees is not read: a weight of zero times NaN would be NaN.
    q = q.masked_fill(~seen.any(-1, keepdim=True), 0.0)
    k, v = (x.masked_fill(~seen.any(-2)[..., None], 0.0) for x in (k, v))
    group = heads // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    s = scale * (q @ k.mT)
    if softcap is not None:
        s = softcap * torch.tanh(s / softcap)
    if alibi_slopes is not None:
        s = s - alibi_slopes.to(s).view(-1, heads, 1, 1) * (i - j).abs()
    return _softmax_v(s, seen, v, return_lse)


def flash_attention_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    **options: object,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention within each of the sequences that are packed one behind the other."""
    outs = []
    for b in range(len(cu_seqlens_q) - 1):
        rows = slice(int(cu_seqlens_q[b]), int(cu_seqlens_q[b + 1]))
        cols = slice(int(cu_seqlens_k[b]), int(cu_seqlens_k[b + 1]))
        one = (x.transpose(0, 1)[None] for x in (q[rows], k[cols], v[cols]))
        unpadded = dict.fromkeys(("key_lengths", "key_starts", "query_lengths"))
        outs.append(flash_attention(*one, **{**options, **unpadded}))  # type: ignore[arg-type]
    if not options["return_lse"]:
        return torch.cat([o[0].transpose(0, 1) for o in outs])
    packed = [torch.cat([x[0].transpose(0, 1) for x in xs]) for xs in zip(*outs, strict=True)]
    return packed[0], packed[1]


def _softmax_v(s: Tensor, seen: Tensor, v: Tensor, return_lse: bool) -> Tensor | tuple[Tensor, Tensor]:
    s = s.masked_fill(~seen, -torch.inf)
    lse = torch.logsumexp(s, dim=-1)
    # A row that sees no key has the log-sum-exp -inf and the output zero, never 0/0.
    empty = torch.isneginf(lse)
    p = torch.exp(s - lse.masked_fill(empty, 0.0)[..., None])
    out = p @ v
    return (out, lse) if return_lse else out
