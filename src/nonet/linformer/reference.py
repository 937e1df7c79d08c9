r"""Both forms of Linformer in the fewest lines: the oracle of every faster path.

Runs in the dtype that it is given. Wang et al. 2020 (Linformer), section 4, and the block-causal form
that is this library's own.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linformer_attention(q: Tensor, k: Tensor, v: Tensor, e: Tensor, f: Tensor, *, scale: float) -> Tensor:
    """Returns ``softmax(scale q (E k)^T) (F v)``: equation 7, with E as K rows over the length."""
    keys = k.shape[2]
    group = q.shape[1] // k.shape[1]
    slot_k = (e[..., :keys] @ k).repeat_interleave(group, dim=1)
    slot_v = (f[..., :keys] @ v).repeat_interleave(group, dim=1)
    return torch.softmax(scale * (q @ slot_k.mT), dim=-1) @ slot_v


def block_linformer_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    slot_k: Tensor,
    slot_v: Tensor,
    *,
    block_size: int,
    past: Tensor | None,
    scale: float,
    alibi_slopes: Tensor | None,
) -> Tensor:
    """Returns one softmax over the slots of finished blocks and the tokens of the query's own block."""
    batch, heads, queries, _ = q.shape
    blocks, slots = slot_k.shape[2:4]
    past = torch.zeros(batch, dtype=torch.long, device=q.device) if past is None else past
    p = (past[:, None] + torch.arange(queries, device=q.device))[:, None, :, None]
    first = past - past % block_size  # keys begin with the block of the first query
    j = (first[:, None] + torch.arange(k.shape[2], device=q.device))[:, None, None, :]
    m = torch.arange(blocks, device=q.device).repeat_interleave(slots)  # the block of each slot
    own = (j // block_size == p // block_size) & (j <= p)
    seen = torch.cat([m < p // block_size, own], dim=-1)

    group = heads // k.shape[1]
    k, v = (torch.cat([slots.flatten(2, 3), x], dim=2) for slots, x in ((slot_k, k), (slot_v, v)))
    # What nobody sees is not read: a weight of zero times NaN would be NaN.
    k, v = (x.masked_fill(~seen.any(2)[..., None], 0.0).repeat_interleave(group, dim=1) for x in (k, v))
    s = scale * (q @ k.mT)
    if alibi_slopes is not None:
        middle = m * block_size + block_size // 2
        distance = torch.cat([p - middle, p - j], dim=-1)
        s = s - alibi_slopes.to(s).view(-1, heads, 1, 1) * distance
    return torch.softmax(s.masked_fill(~seen, -torch.inf), dim=-1) @ v
