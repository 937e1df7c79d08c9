r"""LSH attention in the fewest lines: the oracle of the sorted path, with the whole matrix of scores.

Kitaev et al. 2020 (2001.04451), section 2 and appendix A. Runs in the dtype that it is given; the buckets are
an argument, so that a choice is never made twice.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def lsh_attention(
    qk: Tensor,
    v: Tensor,
    buckets: Tensor,
    *,
    window: int,
    causal: bool,
    attend: str,
    scale: float,
    alibi_slopes: Tensor | None,
    real: Tensor | None,
    queries: int,
) -> Tensor:
    """Returns softmax over the keys that any round shows, of the last ``queries`` rows."""
    n = shown(buckets, window=window, causal=causal, attend=attend, real=real).sum(2)  # N_ij of eq. 16
    if attend != "loose":
        n = n.clamp(max=1)  # log N_ij is subtracted in each of the N_ij rounds: j counts once
    i = torch.arange(qk.shape[2], device=qk.device)[:, None]
    k = F.normalize(qk, dim=-1, eps=1e-6)  # k_j = q_j / |q_j|
    s = scale * (qk @ k.mT)
    if alibi_slopes is not None:
        s = s - alibi_slopes.to(s.dtype).view(-1, qk.shape[1], 1, 1) * (i - i.mT).abs()
    itself = min(1e5, torch.finfo(s.dtype).max / 2)  # m(j, P_i): looked at only when there is nothing else
    s = s - itself * torch.eye(len(i)).to(s) + n.to(s.dtype).log()
    return (s.softmax(-1) @ v)[:, :, -queries:]


def shown(buckets: Tensor, *, window: int, causal: bool, attend: str, real: Tensor | None) -> Tensor:
    """Returns (B, H, R, T, T): whether key j is in the set P_i of query i, round by round."""
    i = torch.arange(buckets.shape[-1], device=buckets.device)[:, None]
    j = i.mT
    seen = buckets[..., :, None] == buckets[..., None, :]  # P_i = {j : h(q_i) = h(k_j)}
    if attend == "bucket":
        rank = (seen & (j < i)).sum(-1)
        seen = seen & ((rank[..., :, None] - rank[..., None, :]).abs() < window)
    else:
        place = buckets.argsort(dim=-1, stable=True).argsort(dim=-1)
        chunks = (place // window)[..., :, None] - (place // window)[..., None, :]
        near = (chunks == 0) | (chunks == 1)  # its own and the one before
        seen = near & seen if attend == "chunk" else near
    if causal:
        seen = seen & (j <= i)
    if real is not None:
        seen = seen & real[:, None, None, None, :]
    return seen | (i == j)
