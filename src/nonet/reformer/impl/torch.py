"""LSH attention by sorting: tokens of a bucket become neighbours, and chunks look at those beside them."""

from __future__ import annotations

from math import log
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.functional import scaled_dot_product_attention

_HIDDEN = -(2**23)  # as a float of 32 bits this whole number is minus infinity


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
    """Compares no more queries than a window holds with every key, and sorts for more."""
    k = F.normalize(qk, dim=-1, eps=1e-6)
    if attend == "bucket" and queries <= window:
        return _dense(qk[:, :, -queries:], k, v, buckets, window, causal, scale, alibi_slopes)
    batch, heads = buckets.shape[:2]
    # Half a window a chunk wastes fewer scores than a whole one, and the window reaches two chunks back.
    shape = (-(-window // 2), 2, 0 if causal else 2) if attend == "bucket" else (window, 1, 0)
    order = _Order(buckets.flatten(0, 1), *shape)
    wide = torch.promote_types(qk.dtype, torch.float32)
    # In the same memory, since to write to fresh memory takes several times as long.
    bias = (
        _hidden(order, window, causal, attend, real).clamp_(max=1).mul_(_HIDDEN).view(torch.float32).to(wide)
    )
    if alibi_slopes is not None:
        i, j = order.pairs(order.token.to(bias))
        slopes = alibi_slopes.to(bias).expand(batch, heads).reshape(-1, 1, 1, 1, 1)
        bias.sub_((i - j).abs_().mul_(slopes))
    q, k, values = (x.flatten(0, 1) for x in (scale * qk, k, v))
    mixed, total, top = _Chunks.apply(order.queries(q), order.keys(k), order.keys(values), bias)

    # Rounds are merged by sums under one maximum, which is what weights by log-sum-exp come to.
    mixed, total, top = (order.undo(x) for x in (mixed, total, top))
    weight = (top - top.amax(1, keepdim=True)).exp_()
    mixed, total = ((weight * x).sum(1).unflatten(0, (batch, heads)) for x in (mixed, total))
    alone = total == 0  # it sees nothing else, so it sees itself
    out = torch.where(alone, v, (mixed / total.masked_fill(alone, 1.0)).to(v.dtype))
    return out[:, :, -queries:]


def _dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    buckets: Tensor,
    window: int,
    causal: bool,
    scale: float,
    slopes: Tensor | None,
) -> Tensor:
    """The last queries against all keys, as in decoding: exact attention under the mask of the buckets."""
    queries, keys = q.shape[2], k.shape[2]
    j = torch.arange(keys, device=q.device)
    i = j[-queries:, None]
    same = buckets[..., -queries:, None] == buckets[..., None, :]
    rank = same.cumsum(-1, dtype=torch.int32)  # of key j in the bucket of query i
    own = rank.gather(-1, i.expand(*same.shape[:-1], 1))
    seen = (same & ((own - rank).abs() < window)).any(2) & (j < i if causal else j != i)
    seen = seen | ((j == i) & ~seen.any(-1, keepdim=True))  # itself, when it sees nothing else
    if slopes is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale)
    bias = -slopes.to(q.dtype).view(-1, q.shape[1], 1, 1) * (i - j).abs()
    bias = bias.masked_fill(~seen, -torch.inf)
    return scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


class _Order:
    """The tokens of every round by (bucket, position), in chunks of ``size`` that see some before and behind.

    Rows and heads of the batch are one axis N. The first and the last chunks see filler, which is hidden.
    """

    def __init__(self, buckets: Tensor, size: int, back: int, ahead: int) -> None:
        length = buckets.shape[-1]
        self.buckets, self.size, self.back = buckets, size, back
        self.width = (back + 1 + ahead) * size  # keys that a chunk sees
        self.chunks = -(-length // size)
        self.tail = self.chunks * size - length
        self.filler = (back * size, self.tail + ahead * size)
        self.token = buckets.argsort(dim=-1, stable=True)  # (N, R, T), at each place
        count = torch.arange(length, device=buckets.device).expand_as(buckets)
        self.place = torch.empty_like(self.token).scatter_(-1, self.token, count)  # of each token

    def queries(self, x: Tensor) -> Tensor:
        """Sorts (N, T, D) for every round: (N, R, chunks, size, D)."""
        rows = _Rows.apply(x, F.pad(self.token, (0, self.tail)), self.place)
        return rows.unflatten(2, (-1, self.size))

    def keys(self, x: Tensor) -> Tensor:
        """Sorts (N, T, D) and gives every chunk what it sees: (N, R, chunks, keys, D)."""
        rows = _Rows.apply(x, F.pad(self.token, self.filler), self.place + self.filler[0])
        return _Near.apply(rows.unflatten(2, (-1, self.size)), self.chunks)

    def pairs(self, x: Tensor, fill: int = 0) -> tuple[Tensor, Tensor]:
        """What queries and keys have of a sorted (N, R, T), to be broadcast against one another."""
        x = F.pad(x, self.filler, value=fill).unflatten(2, (-1, self.size))
        mine = x[:, :, self.back : self.back + self.chunks]
        return mine[..., None], _Near.apply(x, self.chunks)[..., None, :]

    def undo(self, x: Tensor) -> Tensor:
        """Returns (N, R, chunks, size, D) to the order of positions: (N, R, T, D)."""
        rows = x.flatten(2, 3)[:, :, : self.place.shape[-1]].flatten(0, 1)
        rows = _Rows.apply(rows, self.place.flatten(0, 1)[:, None], self.token.flatten(0, 1)[:, None])
        return rows.view(*self.place.shape, x.shape[-1])


def _hidden(order: _Order, window: int, causal: bool, attend: str, real: Tensor | None) -> Tensor:
    """Returns (N, R, chunks, size, keys): zero where a round shows the key and is the first to do so.

    Whole numbers, above zero where a key is hidden for one or more reasons: to compare into booleans is
    several times slower on a CPU. Those of 32 bits hold places among all buckets, which float32 does not.
    """
    # How far a key stands before its query in the sorted order: within a bucket, also which is earlier.
    step = torch.arange(order.size, device=order.token.device)[:, None] + order.filler[0]
    step = step - torch.arange(order.width, device=step.device)
    never = step == 0  # itself is the last resort
    if attend == "loose":
        level = order.token if causal else torch.zeros_like(order.token)
        if real is not None:
            padding = ~real.repeat_interleave(len(level) // max(1, len(real)), 0)[:, None].expand_as(level)
            level = level.masked_fill(padding.gather(-1, order.token), level.shape[-1])
        i, j = order.pairs(level.int(), fill=level.shape[-1] + 1)
        return (j - i).clamp_(0, 1).add_(never)
    i, j = order.pairs(order.buckets.gather(-1, order.token), fill=-1)
    hidden = (i - j).abs_().clamp_(max=1)
    if causal:
        never = never | (step < 0)
    if attend == "bucket":
        never = never | (step.abs() >= window)
        # Numbers that differ by less than a window where places do and the bucket is the same.
        code = order.place + window * order.buckets
    else:  # numbers whose difference is 0 or 1 in the same chunk or the next, of the same bucket
        code = order.place // order.size + 2 * order.buckets
    code = code.int()
    # Where several rounds show a key the first one counts: the sum that N_ij of eq. 16 is there for.
    for r in range(code.shape[1] - 1):
        later = order.token[:, r + 1 :]
        i, j = order.pairs(code[:, r, None].expand_as(later).gather(-1, later))
        apart = i - j
        if attend == "bucket":
            shown = apart.abs_().neg_().add_(window).clamp_(0, 1)
        else:
            shown = apart.clamp_(-1, 2).mul_(2).sub_(1).abs_().neg_().add_(3).clamp_(0, 1)
        hidden[:, r + 1 :] += shown
    return hidden.add_(never)


class _Chunks(torch.autograd.Function):
    """Attention of every chunk before division: sums of e^(score - top) v and of e^(score - top), and top."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        e = (q @ k.mT).to(bias.dtype).add_(bias)
        top = e.amax(-1, keepdim=True).clamp_(min=torch.finfo(e.dtype).min)
        # Powers of two, since a CPU takes far longer for exp where it underflows.
        total = e.sub_(top).mul_(1 / log(2)).exp2_().sum(-1, keepdim=True)
        e = e.to(v.dtype)
        ctx.save_for_backward(q, k, v, e)
        ctx.mark_non_differentiable(top)
        return e @ v, total, top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_mixed: Tensor, g_total: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, e = ctx.saved_tensors
        g = (g_mixed @ v.mT).add_(g_total).mul_(e)
        return g @ k, g.mT @ q, e.mT @ g_mixed, None


class _Near(torch.autograd.Function):
    """Puts the chunks that each of ``chunks`` chunks sees one behind the other, along axis 3."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, chunks: int) -> Tensor:
        ctx.shape = x.shape
        return torch.cat([x[:, :, s : s + chunks] for s in range(x.shape[2] - chunks + 1)], dim=3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        out = grad.new_zeros(ctx.shape)
        for s, part in enumerate(grad.split(ctx.shape[3], dim=3)):
            out[:, :, s : s + grad.shape[2]] += part
        return out, None


class _Rows(torch.autograd.Function):
    """Picks rows of ``x`` (N, T, D) by ``index`` (N, R, P), which puts row t at ``inverse`` (N, R, T).

    So the gradient is picked too, not scattered: faster, and always the same bits. Filler has none.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(inverse)
        return _pick(x, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (inverse,) = ctx.saved_tensors
        rows = _pick(grad.flatten(0, 1), inverse.flatten(0, 1)[:, None])
        return rows.view(*inverse.shape, grad.shape[-1]).sum(1), None, None


def _pick(x: Tensor, index: Tensor) -> Tensor:
    first = torch.arange(x.shape[0], device=x.device).view(-1, 1, 1) * x.shape[1]
    return x.flatten(0, 1).index_select(0, (index + first).flatten()).view(*index.shape, x.shape[-1])
