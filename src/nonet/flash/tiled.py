"""FlashAttention-2 written to be read: tiles, an online softmax, and a backward pass that recomputes.

Dao 2023 (2307.08691), algorithms 1 and 2. It computes what :func:`nonet.flash.flash_attention` does, in loops
that a kernel would run on blocks of a GPU; it is for understanding and measuring, not for speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from nonet.flash.traffic import Traffic
from nonet.shapes import Tensors, check_flag, check_heads, check_number, check_positive, check_whole

_TENSORS = Tensors("H D", q="B H T D", k="B G S D", v="B G S D", alibi_slopes="[B] H: float?")


@dataclass(frozen=True)
class Tiles:
    """How scores are cut into tiles, and what a score depends on beside its query and key."""

    queries: int
    keys: int
    block_q: int
    block_k: int
    scale: float
    causal: bool
    window: int | None
    softcap: float | None
    slopes: Tensor | None  # (B or 1, G, H // G, 1, 1)

    @property
    def rows(self) -> list[slice]:
        """The blocks of queries."""
        return _cut(self.queries, self.block_q)

    @property
    def cols(self) -> list[slice]:
        """The blocks of keys."""
        return _cut(self.keys, self.block_k)

    def meet(self, rows: slice, cols: slice) -> bool:
        """Returns whether any query of a tile sees any of its keys; a tile above the diagonal is skipped."""
        offset = self.keys - self.queries
        nearest = max(cols.start - (rows.stop - 1 + offset), (rows.start + offset) - (cols.stop - 1), 0)
        future = cols.start > rows.stop - 1 + offset
        return not (self.causal and future) and (self.window is None or nearest < self.window)

    def scores(self, q: Tensor, k: Tensor, rows: slice, cols: slice) -> tuple[Tensor, Tensor | None]:
        """Returns a tile of scores, -inf where nothing is seen, and the slope of the cap if there is one."""
        s, slope = self.scale * (q @ k.mT), None
        if self.softcap is not None:
            t = torch.tanh(s / self.softcap)
            s, slope = self.softcap * t, 1 - t.square()
        i = torch.arange(rows.start, rows.stop, device=q.device)[:, None] + self.keys - self.queries
        distance = i - torch.arange(cols.start, cols.stop, device=q.device)
        if self.slopes is not None:
            s = s - self.slopes.to(s) * distance.abs()
        hidden = distance < 0 if self.causal else torch.zeros_like(distance, dtype=torch.bool)
        if self.window is not None:
            hidden = hidden | (distance.abs() >= self.window)
        return s.masked_fill(hidden, -torch.inf), slope


class TiledAttention(torch.autograd.Function):
    """The two passes. Queries are ``(B, G, H // G, T, D)``, keys and values ``(B, G, 1, S, D)``."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: Tiles, traffic: Traffic
    ) -> tuple[Tensor, Tensor]:
        """Returns the output and the log-sum-exp of every row, which is all that backward needs."""
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[:-1], dtype=torch.promote_types(q.dtype, torch.float32))
        for rows in tiles.rows:
            q_i = traffic.read(q[..., rows, :])
            o_i = torch.zeros_like(q_i)  # divided by l at the end
            l_i = torch.zeros_like(q_i[..., 0])
            m_i = torch.full_like(l_i, -torch.inf)
            for cols in (c for c in tiles.cols if tiles.meet(rows, c)):
                k_j, v_j = traffic.read(k[..., cols, :]), traffic.read(v[..., cols, :])
                s, _ = tiles.scores(q_i, k_j, rows, cols)
                m_new = torch.maximum(m_i, s.amax(-1))
                p = torch.exp(s - _finite(m_new)[..., None])
                fade = torch.exp(m_i - _finite(m_new))  # earlier terms were relative to the old maximum
                l_i = fade * l_i + p.sum(-1)
                o_i = fade[..., None] * o_i + p @ v_j
                m_i = m_new
            traffic.write(out[..., rows, :], o_i / torch.where(l_i == 0, 1.0, l_i)[..., None])
            traffic.write(lse[..., rows], m_i + torch.log(l_i))
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.tiles, ctx.traffic = tiles, traffic
        return out, lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Tensor | None, ...]:
        """Returns the gradients of q, k and v, from tiles of P that are computed again."""
        q, k, v, out, lse = ctx.saved_tensors
        tiles, traffic = ctx.tiles, ctx.traffic
        delta, dq_sum = torch.empty_like(lse), torch.zeros_like(q, dtype=lse.dtype)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for rows in tiles.rows:
            do_i, o_i = traffic.read(d_out[..., rows, :]), traffic.read(out[..., rows, :])
            # dS = P (dP - rowsum(dO O)), and the log-sum-exp's own gradient adds P dL.
            traffic.write(delta[..., rows], (do_i * o_i).sum(-1) - d_lse[..., rows])
        for cols in tiles.cols:
            k_j, v_j = traffic.read(k[..., cols, :]), traffic.read(v[..., cols, :])
            dk_j, dv_j = torch.zeros_like(k_j), torch.zeros_like(v_j)
            for rows in (r for r in tiles.rows if tiles.meet(r, cols)):
                q_i, do_i = traffic.read(q[..., rows, :]), traffic.read(d_out[..., rows, :])
                lse_i, delta_i = traffic.read(lse[..., rows]), traffic.read(delta[..., rows])
                s, slope = tiles.scores(q_i, k_j, rows, cols)
                p = torch.exp(s - _finite(lse_i)[..., None])
                ds = p * (do_i @ v_j.mT - delta_i[..., None])
                ds = tiles.scale * (ds if slope is None else ds * slope)
                # Query heads that share a key head add up.
                dv_j += (p.mT @ do_i).sum(2, keepdim=True)
                dk_j += (ds.mT @ q_i).sum(2, keepdim=True)
                dq_i = traffic.read(dq_sum[..., rows, :]) + ds @ k_j
                traffic.write(dq_sum[..., rows, :], dq_i)
            traffic.write(dk[..., cols, :], dk_j)
            traffic.write(dv[..., cols, :], dv_j)
        for rows in tiles.rows:
            traffic.write(dq[..., rows, :], traffic.read(dq_sum[..., rows, :]))
        return dq, dk, dv, None, None


def tiled_attention(
    q: Float[Tensor, "B H T D"],
    k: Float[Tensor, "B G S D"],
    v: Float[Tensor, "B G S D"],
    *,
    causal: bool = False,
    scale: float | None = None,
    block_q: int = 64,
    block_k: int = 64,
    alibi_slopes: Float[Tensor, "*B H"] | None = None,
    window: int | None = None,
    softcap: float | None = None,
    return_lse: bool = False,
    traffic: Traffic | None = None,
) -> Float[Tensor, "B H T D"] | tuple[Float[Tensor, "B H T D"], Float[Tensor, "B H T"]]:
    """Returns exact attention, computed tile by tile in both directions.

    Args:
        q: queries ``(B, H, T, D)``.
        k: keys ``(B, G, S, D)``.
        v: values ``(B, G, S, D)``.
        causal: as in :func:`nonet.flash.flash_attention`, and so are the other options it shares.
        scale: factor on scores, ``D ** -0.5`` by default.
        block_q: queries of a tile.
        block_k: keys of a tile.
        alibi_slopes: ``(H,)`` or ``(B, H)``; gets no gradient.
        window: keys at a distance below it are seen.
        softcap: bound on scores.
        return_lse: also return the log-sum-exp of each row, in float32 or wider; gradients flow through it.
        traffic: counts the bytes that tiles move, in the backward pass too.

    Returns:
        ``(B, H, T, D)`` in the dtype of q, and ``(B, H, T)`` when asked.

    Raises:
        TypeError: an argument is no tensor, or ``traffic`` no :class:`Traffic`.
        ValueError: a shape, dtype, device or option is wrong.

    Complexity: as :func:`nonet.flash.flash_attention`, with ``B H (T + S) D`` numbers of memory beside tiles;
    2.5 times as much in the backward pass.
    """
    sizes = _TENSORS.check(q, k, v, alibi_slopes)
    check_heads(sizes)
    check_flag(causal=causal, return_lse=return_lse)
    scale = sizes["D"] ** -0.5 if scale is None else scale
    check_number(scale=scale)
    check_whole(block_q=block_q, block_k=block_k, window=1 if window is None else window)
    check_positive(softcap=softcap)
    if not isinstance(traffic, Traffic | None):
        raise TypeError(f"traffic must be a Traffic or None; got {type(traffic).__name__}")
    group = sizes["H"] // sizes["G"]
    if alibi_slopes is not None:
        alibi_slopes = alibi_slopes.view(-1, sizes["G"], group, 1, 1)
    tiles = Tiles(sizes["T"], sizes["S"], block_q, block_k, scale, causal, window, softcap, alibi_slopes)
    grouped = q.unflatten(1, (sizes["G"], group))
    out, lse = TiledAttention.apply(grouped, k[:, :, None], v[:, :, None], tiles, traffic or Traffic())
    out, lse = out.flatten(1, 2), lse.flatten(1, 2)
    return (out, lse) if return_lse else out


def _cut(length: int, block: int) -> list[slice]:
    return [slice(at, min(at + block, length)) for at in range(0, length, block)]


def _finite(m: Tensor) -> Tensor:
    """Returns ``m`` with 0 for -inf, since exp(-inf - -inf) would be no number."""
    return m.masked_fill(torch.isneginf(m), 0.0)
