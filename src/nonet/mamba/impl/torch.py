r"""The recurrence in plain PyTorch, a block of tokens at a time so that its states stay in cache.

The decays and the inputs of a block are each one large product; only
:math:`h_t = a_t h_{t-1} + b_t` goes token by token, one call in place for all rows, states and
channels. Nothing of size ``B C N T`` is kept: the backward pass has the state before each block and
computes the states within it again, which costs less than to fetch them from memory.
Decays are multiplied one by one and never divided out again, so nothing can overflow on the way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, pad, silu, softplus

from nonet.shapes import one_by_one

_BLOCK = 2**19  # numbers in the states of a block: 2 MiB in float32, so that a few such fit a cache
_LEAST = 8  # tokens in a block, so that at most one state in eight is kept for the backward pass


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Computes in float32 at least; the steps, the skip and the gate are left to autograd."""
    if cu_seqlens is not None:
        run = partial(selective_scan, A=A, D=D, delta_bias=delta_bias, delta_softplus=delta_softplus)
        return one_by_one(run, cu_seqlens, initial_state, u=u, delta=delta, B=B, C=C, z=z)
    wide = torch.promote_types(u.dtype, torch.float32)
    # Time first in memory as well, so that a block of tokens is one piece.
    x, dt, B, C = (t.to(wide).permute(2, 0, 1).contiguous() for t in (u, delta, B, C))
    if delta_bias is not None:
        dt = dt + delta_bias.to(wide)
    if delta_softplus:
        dt = softplus(dt)
    A = A.to(wide).T
    h = x.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state.to(wide).mT
    inputs = dt, dt * x, A.contiguous(), B, C, h.contiguous()
    if torch.is_grad_enabled():
        y, last = _Scan.apply(*inputs)
    else:
        y, last, _ = torch.ops.nonet.mamba_scan(*inputs, train=False)
    if D is not None:
        y = torch.addcmul(y, x, D.to(wide))
    if z is not None:
        y = y * silu(z.to(wide).permute(2, 0, 1))
    return y.to(u.dtype).permute(1, 2, 0), last.mT


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Adds one shifted product a tap, which on channels-last inputs beats a grouped convolution."""
    if cu_seqlens is not None:
        run = partial(causal_conv1d, weight=weight, bias=bias, activation=activation)
        return one_by_one(run, cu_seqlens, initial_state, x=x)
    length, before = x.shape[2], weight.shape[1] - 1
    # Channels last: a tap's weights then meet a row of neighbours in memory.
    seen = pad(x.mT, (0, 0, before, 0)) if initial_state is None else torch.cat([initial_state.mT, x.mT], 1)
    wide = torch.promote_types(x.dtype, torch.float32)
    rows, weight = seen.to(wide), weight.to(wide)
    y = weight.new_zeros(()) if bias is None else bias.to(wide)
    for w in range(before + 1):
        y = torch.addcmul(y, rows[:, w : w + length], weight[:, w])
    if activation == "silu":
        y = silu(y)
    return y.to(x.dtype).mT, seen[:, length:].mT.contiguous()


def mamba_step(
    x: Tensor,
    conv_state: Tensor,
    ssm_state: Tensor,
    in_proj: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    x_proj: Tensor,
    dt_proj: Tensor,
    dt_bias: Tensor | None,
    A_log: Tensor,
    D: Tensor,
    out_proj: Tensor,
    *,
    in_bias: Tensor | None,
    out_bias: Tensor | None,
    norm_eps: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Multiplies matrices in the dtype of x, and does all else in float32 at least."""
    wide = torch.promote_types(x.dtype, torch.float32)
    N, taps = A_log.shape[1], conv_weight.shape[1]
    new, z = linear(x, in_proj, in_bias).to(wide).chunk(2, dim=1)
    seen = torch.cat([conv_state.to(wide), new[..., None]], dim=2)
    u = (seen[..., -taps:] * conv_weight.to(wide)).sum(2)
    u = silu(u if conv_bias is None else u + conv_bias.to(wide)).to(x.dtype)
    parts = linear(u, x_proj).to(wide).split((dt_proj.shape[1], N, N), dim=1)
    if norm_eps is not None:
        parts = tuple(p * torch.rsqrt(p.square().mean(1, keepdim=True) + norm_eps) for p in parts)
    r, B, C = parts
    delta = linear(r.to(x.dtype), dt_proj).to(wide)
    dt = softplus(delta if dt_bias is None else delta + dt_bias.to(wide))
    decay = torch.exp(dt[..., None] * -torch.exp(A_log.to(wide)))
    h = decay * ssm_state.to(wide) + (dt * u)[..., None] * B[:, None]
    y = (h * C[:, None]).sum(2) + D.to(wide) * u
    out = linear((y * silu(z)).to(x.dtype), out_proj, out_bias)
    return out, seen[..., 1:].to(conv_state.dtype).contiguous(), h


class _Scan(torch.autograd.Function):
    """``h_t = exp(dt_t A) h_{t-1} + B_t x_t`` and ``y_t = C_t h_t``.

    Time comes first and channels last: dt and x are (T, B, C), A is (N, C), B and C are (T, B, N),
    states are (B, N, C).
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        y, last, fronts = torch.ops.nonet.mamba_scan(*inputs, train=True)
        ctx.save_for_backward(*inputs[:5], fronts)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh: Tensor) -> tuple[Tensor, ...]:
        return torch.ops.nonet.mamba_scan_backward(*ctx.saved_tensors, dy, dh)


def _scan(
    dt: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, train: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns y, the last state, and for training the state before each block."""
    y, _, fronts = _scan_shapes(dt, x, A, B, C, h, train)
    length = _length(dt, h)
    decays, states = h.new_empty(2, length, *h.shape)
    for i, (dt_, x_, B_, C_, y_) in enumerate(_blocks(length, dt, x, B, C, y)):
        if train:
            fronts[i] = h
        _, hs = _states(dt_, x_, A, B_, h, decays, states)
        torch.bmm(_rows(C_), hs.flatten(0, 1), out=_rows(y_))
        h = hs[-1].clone()
    return y, h, fronts


def _scan_backward(
    dt: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, fronts: Tensor, dy: Tensor, dh: Tensor
) -> tuple[Tensor, ...]:
    """Returns the gradients of dt, x, A, B, C and of the first state."""
    ddt, dx, dA, dB, dC, _ = _scan_backward_shapes(dt, x, A, B, C, fronts, dy, dh)
    dA.zero_()
    length = _length(dt, dh)
    decays, states, grads = dh.new_empty(3, length, *dh.shape)
    blocks = zip(_blocks(length, dt, x, B, C, dy, ddt, dx, dB, dC), fronts, strict=True)
    for (dt_, x_, B_, C_, dy_, ddt_, dx_, dB_, dC_), h in reversed(list(blocks)):
        a, hs = _states(dt_, x_, A, B_, h, decays, states)
        # The gradient of a state: what its output asks of it, and what the next state does.
        g = torch.mul(dy_[:, :, None], C_[..., None], out=grads[: len(a)])
        g[-1] += dh
        _recur(reversed(a.unbind()[1:]), reversed(g.unbind()))
        torch.bmm(_rows(dy_), hs.flatten(0, 1).mT, out=_rows(dC_))
        torch.bmm(_rows(x_), g.flatten(0, 1).mT, out=_rows(dB_))
        torch.bmm(_rows(B_), g.flatten(0, 1), out=_rows(dx_))
        a *= g
        dh = a[0].clone()
        # Now a becomes the gradient of dt A, the logarithm of the decay.
        a[0] *= h
        a[1:] *= hs[:-1]
        torch.sum(torch.mul(a, A, out=g), 2, out=ddt_)
        dA += a.mul_(dt_[:, :, None]).sum((0, 1))
    return ddt, dx, dA, dB, dC, dh


def _scan_shapes(
    dt: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, h: Tensor, train: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the outputs unfilled: memory to write to, and shapes for the compiler."""
    blocks = -(-len(dt) // _length(dt, h)) if train else 0
    return dt.new_empty(dt.shape), h.new_empty(h.shape), h.new_empty(blocks, *h.shape)


def _scan_backward_shapes(
    dt: Tensor, x: Tensor, A: Tensor, B: Tensor, C: Tensor, fronts: Tensor, dy: Tensor, dh: Tensor
) -> tuple[Tensor, ...]:
    return tuple(t.new_empty(t.shape) for t in (dt, x, A, B, C, dh))


def _length(dt: Tensor, h: Tensor) -> int:
    """Returns the number of tokens in a block."""
    return min(len(dt), max(_LEAST, _BLOCK // max(1, h.numel())))


def _blocks(length: int, *tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    return zip(*(t.split(length) for t in tensors), strict=True)


def _states(
    dt: Tensor, x: Tensor, A: Tensor, B: Tensor, h: Tensor, decays: Tensor, states: Tensor
) -> tuple[Tensor, Tensor]:
    """Writes the decays of a block and the states after each of its tokens, starting from h."""
    # exp2 takes a third of the time of exp on a CPU.
    a = torch.mul(dt[:, :, None], A * math.log2(math.e), out=decays[: len(dt)]).exp2_()
    hs = torch.mul(x[:, :, None], B[..., None], out=states[: len(dt)])
    _recur(a.unbind(), (h, *hs.unbind()))
    return a, hs


def _recur(decays: Iterable[Tensor], values: Iterable[Tensor]) -> None:
    """Adds to each value but the first its decay times the value before it."""
    before, *rest = values
    for decay, value in zip(decays, rest, strict=True):
        before = value.addcmul_(decay, before)


def _rows(x: Tensor) -> Tensor:
    """Returns (T, B, n) as one row vector a token, (T B, 1, n)."""
    return x.reshape(-1, 1, x.shape[-1])


# As operators they are opaque to torch.compile, which would unroll the loop over tokens otherwise.
_library = torch.library.Library("nonet", "FRAGMENT")
_library.define(
    "mamba_scan(Tensor dt, Tensor x, Tensor A, Tensor B, Tensor C, Tensor h, bool train)"
    " -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "mamba_scan_backward(Tensor dt, Tensor x, Tensor A, Tensor B, Tensor C, Tensor fronts, "
    "Tensor dy, Tensor dh) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
for _name, _run, _shapes in (
    ("mamba_scan", _scan, _scan_shapes),
    ("mamba_scan_backward", _scan_backward, _scan_backward_shapes),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"nonet::{_name}", _shapes)
