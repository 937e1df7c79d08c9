"""PyTorch's own fused attention: over the slots, or over each block beside the slots before it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from nonet.linformer.rows import shift
from nonet.shapes import lengths_to_mask, zeroed

RUNS = 4  # blocks are computed in so many runs, so that early ones do not read the slots of late ones


def linformer_attention(q: Tensor, k: Tensor, v: Tensor, e: Tensor, f: Tensor, *, scale: float) -> Tensor:
    """Calls ``scaled_dot_product_attention`` on the projected keys and values."""
    keys = k.shape[2]
    return scaled_dot_product_attention(
        q, e[..., :keys] @ k, f[..., :keys] @ v, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


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
    """Calls ``scaled_dot_product_attention`` with the blocks of a text as rows of a batch."""
    queries = q.shape[2]
    start = torch.zeros(1, dtype=torch.long, device=q.device) if past is None else past
    offset = start % block_size
    if past is not None:  # weights of zero do not hide NaN, so what comes after the last query is zero too
        k, v = (_first(x, offset + queries) for x in (k, v))
        slot_k, slot_v = (_first(x, (past + queries - 1) // block_size) for x in (slot_k, slot_v))
    if queries == 1:  # decoding: a block of which one query is wanted
        blocks = 1
        q, places = q[:, :, None], start[:, None, None]
    else:
        blocks = -(-(queries + (0 if past is None else block_size - 1)) // block_size)
        q = q if past is None else shift(q, -offset, blocks * block_size)
        q = _in_blocks(q, blocks, block_size)
        within = torch.arange(blocks * block_size, device=q.device).view(blocks, block_size)
        places = (start - offset)[:, None, None] + within
    k, v = _in_blocks(k, blocks, block_size), _in_blocks(v, blocks, block_size)

    run = blocks if past is not None else -(-blocks // RUNS)
    outs = []
    for at in range(0, blocks, run):
        to = min(at + run, blocks)
        tokens = (x[:, :, at:to] for x in (q, k, v))
        slots = (x[:, :, : to - 1] if past is None else x for x in (slot_k, slot_v))
        outs.append(_attend(*tokens, *slots, places=places[:, at:to], scale=scale, slopes=alibi_slopes))
    out = torch.cat(outs, dim=2).flatten(2, 3)
    return out[:, :, :queries] if past is None or queries == 1 else shift(out, offset, queries)


def _first(x: Tensor, count: Tensor) -> Tensor:
    """Returns the first ``count[b]`` entries on axis 2 of each row, and zeros after them."""
    mask = lengths_to_mask(count, x.shape[2])
    return zeroed(x, ~mask.view(len(mask), 1, x.shape[2], *[1] * (x.dim() - 3)))


def _in_blocks(x: Tensor, blocks: int, block_size: int) -> Tensor:
    """Returns ``(B, n, blocks, block_size, D)``, cut or filled up with zeros."""
    return pad(x, (0, 0, 0, blocks * block_size - x.shape[2])).unflatten(2, (blocks, block_size))


def _attend(
    q: Tensor,  # (B, H, n, w, D): w queries of each of n blocks
    k: Tensor,  # (B, G, n, c, D)
    v: Tensor,
    slot_k: Tensor,  # (B, G, m, K, D): all blocks that any of them may see
    slot_v: Tensor,
    *,
    places: Tensor,  # (B or 1, n, w) of the queries
    scale: float,
    slopes: Tensor | None,
) -> Tensor:
    batch, heads, blocks = q.shape[:3]
    size = k.shape[3]
    block = torch.arange(slot_k.shape[2], device=q.device).repeat_interleave(slot_k.shape[3])
    places = places.transpose(0, 1)[:, :, None, :, None]  # (n, B or 1, 1, w, 1)
    to_token = places % size - torch.arange(size, device=q.device)
    mask = torch.cat([block < places // size, to_token >= 0], dim=-1)
    if slopes is not None:
        to_slot = places - (block * size + size // 2)
        distance = torch.cat([to_slot, to_token], dim=-1)
        bias = -slopes.view(-1, heads, 1, 1) * distance
        mask = bias.to(q.dtype).masked_fill(~mask, -torch.inf)
    if mask.shape[1:3] != (1, 1):
        mask = mask.expand(-1, batch, heads, -1, -1)

    def beside(slots: Tensor, tokens: Tensor) -> Tensor:
        slots = slots.flatten(2, 3)[:, :, None].expand(-1, -1, blocks, -1, -1)
        return torch.cat([slots, tokens], dim=3).flatten(0, 1).transpose(0, 1)

    # Blocks come first and rows are folded into heads, so that one mask a block serves them all.
    out = scaled_dot_product_attention(
        q.flatten(0, 1).transpose(0, 1),
        beside(slot_k, k),
        beside(slot_v, v),
        attn_mask=mask.flatten(1, 2),
        scale=scale,
        enable_gqa=heads != k.shape[1],
    )
    return out.transpose(0, 1).unflatten(0, (batch, heads))
