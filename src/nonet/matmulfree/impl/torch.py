"""Plain PyTorch: the recurrence for many places at once, and exact products of whole numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import silu

from nonet.matmulfree.bitlinear import rounded_linear
from nonet.matmulfree.packed import PackedTernary
from nonet.shapes import one_by_one


def hgrn_scan(
    i: Tensor,
    f: Tensor,
    *,
    initial_state: Tensor | None,
    from_logits: bool,
    lower_bound: Tensor | None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Runs the recurrence in about ``4 sqrt(T)`` steps; gates and states are float32 or wider."""
    if cu_seqlens is not None:
        run = partial(hgrn_scan, from_logits=from_logits, lower_bound=lower_bound)
        return one_by_one(run, cu_seqlens, initial_state, i=i, f=f)
    wide, dtype = torch.promote_types(i.dtype, torch.float32), i.dtype
    start = i.new_zeros(i.shape[:2]) if initial_state is None else initial_state
    # Time before channels: every step then reads and writes whole rows of memory.
    i, f = i.mT.to(wide).contiguous(), f.mT.to(wide).contiguous()
    if from_logits:
        f = torch.sigmoid(f)
        if lower_bound is not None:
            least = lower_bound.to(wide)
            f = least + (1 - least) * f
        i = silu(i) * (1 - f)
    h = _Scan.apply(i, f, start.to(wide))
    # A copy, so that whoever keeps the last state does not keep all of them.
    return h.mT.to(dtype), h[:, -1].clone()


def ternary_linear(
    x: Tensor, packed: PackedTernary, bias: Tensor | None, norm_weight: Tensor | None, eps: float
) -> Tensor:
    """Multiplies whole numbers in float32, exact up to a width of 131072, and scales the result."""
    wide = torch.promote_types(x.dtype, torch.float32)
    return rounded_linear(x, packed.unpack(wide), packed.scale, bias, norm_weight, eps)


class _Scan(torch.autograd.Function):
    """``h_t = f_t h_{t-1} + i_t`` over the middle axis of (B, T, C)."""

    @staticmethod
    def forward(ctx: Any, i: Tensor, f: Tensor, start: Tensor) -> Tensor:
        h = torch.ops.nonet.hgrn_scan(i, f, start)
        ctx.save_for_backward(f, h, start)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return torch.ops.nonet.hgrn_scan_backward(*ctx.saved_tensors, grad.contiguous())


def _forward(i: Tensor, f: Tensor, start: Tensor) -> Tensor:
    h = torch.empty_like(i)
    _scan(i, f, start, h)
    return h


def _backward(f: Tensor, h: Tensor, start: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Runs the recurrence ``g_t = f_{t+1} g_{t+1} + grad_t`` of the states' gradients."""
    g, grad_f = torch.empty_like(f), torch.empty_like(f)
    g[:, -1] = grad[:, -1]
    _scan(grad[:, :-1], f[:, 1:], g[:, -1], g[:, :-1], backwards=True)
    torch.mul(g[:, 1:], h[:, :-1], out=grad_f[:, 1:])
    torch.mul(g[:, 0], start, out=grad_f[:, 0])
    return g, grad_f, f[:, 0] * g[:, 0]


def _scan(i: Tensor, f: Tensor, start: Tensor, h: Tensor, backwards: bool = False) -> None:
    """Fills ``h`` (B, T, C) with the recurrence from ``start``, from the last place on if backwards.

    Time is cut into blocks of about sqrt(T) places, which advance side by side, and a rest. A block maps
    the state before it to ``total + product * state``: first these maps are found, then the state before
    every block, then the states within. Only products of ``f`` are formed, so it may be any number.
    """
    length = i.shape[1]
    size = math.isqrt(length)
    if size == 0:
        return
    order = slice(None, None, -1 if backwards else 1)
    rest = length % size
    inside, outside = slice(length - rest), slice(length - rest, None)
    if backwards:
        inside, outside = slice(rest, None), slice(rest)
    i_b, f_b, h_b = (t[:, inside].unflatten(1, (-1, size)).unbind(2)[order] for t in (i, f, h))

    total, product = i_b[0].clone(), f_b[0].clone()
    for i_t, f_t in zip(i_b[1:], f_b[1:], strict=True):
        torch.addcmul(i_t, f_t, total, out=total)
        product.mul_(f_t)
    before = [start]
    for t, p in zip(total.unbind(1)[order], product.unbind(1)[order], strict=True):
        before.append(torch.addcmul(t, p, before[-1]))
    *before, end = before

    _steps(torch.stack(before[order], dim=1), i_b, f_b, h_b)
    _steps(end, *(t[:, outside].unbind(1)[order] for t in (i, f, h)))


def _steps(state: Tensor, *i_f_h: Sequence[Tensor]) -> None:
    """Fills the tensors h with the recurrence, one after the other."""
    for i, f, h in zip(*i_f_h, strict=True):
        state = torch.addcmul(i, f, state, out=h)


# As operators they are opaque to torch.compile, which would unroll the loops otherwise.
_library = torch.library.Library("nonet", "FRAGMENT")
_library.define("hgrn_scan(Tensor i, Tensor f, Tensor start) -> Tensor")
_library.define(
    "hgrn_scan_backward(Tensor f, Tensor h, Tensor start, Tensor grad) -> (Tensor, Tensor, Tensor)"
)
_library.impl("hgrn_scan", _forward, "CompositeExplicitAutograd")
_library.impl("hgrn_scan_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("nonet::hgrn_scan", lambda i, f, start: torch.empty_like(i))
torch.library.register_fake(
    "nonet::hgrn_scan_backward",
    lambda f, h, start, grad: (torch.empty_like(f), torch.empty_like(f), start.new_empty(start.shape)),
)
