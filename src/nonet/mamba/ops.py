"""The operators of the kernels: their schemas, what they return for torch.compile, and their gradients.

Each operator allocates what it returns by the function that the compiler asks for shapes, and lets a
kernel fill it. Parameters and states reach the kernels in float32, tokens as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nonet.mamba.impl import cpu
from nonet.operators import define, ends, float32, learns

_CHUNK = 32  # NONET_CHUNK of csrc/common/nonet.h: tokens between two saved states


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
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns the output (B, C, T) and the last state (n, C, N)."""
    D, delta_bias, initial = (float32(t) for t in (D, delta_bias, initial_state))
    inputs = u, delta, A.float(), B, C, D, z, delta_bias, initial, ends(cu_seqlens)
    if learns(*inputs):
        return _SelectiveScan.apply(*inputs, delta_softplus)
    out, last, _ = torch.ops.nonet.selective_scan(*inputs, delta_softplus, False)
    return out, last


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns the output (B, C, T) and the last inputs (n, C, W - 1)."""
    inputs = x, weight.float(), float32(bias), initial_state, ends(cu_seqlens)
    silu = activation == "silu"
    if learns(*inputs):
        return _CausalConv1d.apply(*inputs, silu)
    return torch.ops.nonet.causal_conv1d(*inputs, silu)


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
    """Returns the output (B, E) and the two new states."""
    small = conv_weight, conv_bias, dt_bias, A_log, D
    if any(t is not None and t.dtype != x.dtype for t in small):
        small = tuple(float32(t) for t in small)  # type: ignore[assignment]
    conv_weight, conv_bias, dt_bias, A_log, D = small
    in_proj, x_proj, dt_proj, out_proj, conv_weight, A_log = (
        t if t.stride(1) == 1 else t.contiguous()
        for t in (in_proj, x_proj, dt_proj, out_proj, conv_weight, A_log)
    )
    out, conv, ssm = torch.ops.nonet.mamba_step(
        x,
        conv_state.to(x.dtype),
        ssm_state.float().contiguous(),
        in_proj,
        conv_weight,
        conv_bias,
        x_proj,
        dt_proj,
        dt_bias,
        A_log,
        D,
        out_proj,
        in_bias,
        out_bias,
        norm_eps,
    )
    return out, conv.to(conv_state.dtype), ssm


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        u, delta, A, B, C, D, z, delta_bias, initial, starts, softplus = inputs
        out, last, fronts = torch.ops.nonet.selective_scan(*inputs, True)
        ctx.save_for_backward(fronts, u, delta, A, B, C, D, z, delta_bias, starts)
        ctx.softplus = softplus
        ctx.given = [t is not None for t in (D, delta_bias, initial)]
        return out, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, starts = ctx.saved_tensors
        B = tensors[4]
        du, ddelta, dz, dB, dC, dA, dD, dbias, dinitial = torch.ops.nonet.selective_scan_backward(
            dout, dlast, *tensors, starts, ctx.softplus
        )
        channels, states = dinitial.shape[1:]
        dA = dA.sum(0)[:states, :channels].mT
        dB, dC = (t.to(B.dtype).mT for t in (dB, dC))
        dD, dbias = (t.sum(0)[:channels] for t in (dD, dbias))
        dD, dbias, dinitial = (
            t if given else None for t, given in zip((dD, dbias, dinitial), ctx.given, strict=True)
        )
        return du, ddelta, dA, dB, dC, dD, dz if len(dz) else None, dbias, dinitial, None, None


class _CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, ctx.silu = inputs
        ctx.save_for_backward(*tensors)
        return torch.ops.nonet.causal_conv1d(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        inputs = ctx.saved_tensors  # read once: checkpointing computes them again for one reader
        _, _, bias, initial, _ = inputs
        dx, dweight, dbias, dinitial = torch.ops.nonet.causal_conv1d_backward(dout, dlast, *inputs, ctx.silu)
        return (
            dx,
            dweight.sum(0),
            None if bias is None else dbias.sum(0),
            None if initial is None else dinitial,
            None,
            None,
        )


def _scan_shapes(u: Tensor, delta: Tensor, A: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    starts, _, train = rest[-3:]
    rows, (channels, states) = _rows(u, starts), A.shape
    # Each row has a state before each of its chunks, one behind the last, and starts on a chunk of its own.
    count = u.shape[0] * u.shape[2] // _CHUNK + 2 * rows if train else rows
    fronts = A.new_empty(count, *_padded(states, channels))
    return torch.empty_like(u), A.new_empty(rows, channels, states), fronts


def _scan_backward_shapes(
    dout: Tensor, dlast: Tensor, fronts: Tensor, u: Tensor, delta: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    B, z = rest[1], rest[4]
    rows, (states, channels) = len(dlast), fronts.shape[1:]
    by_time = B.shape[0], B.shape[2], B.shape[1]
    return (
        torch.empty_like(u),
        torch.empty_like(delta),
        u.new_empty(0) if z is None else torch.empty_like(z),
        dlast.new_empty(by_time),
        dlast.new_empty(by_time),
        dlast.new_empty(rows, states, channels),
        dlast.new_empty(rows, channels),
        dlast.new_empty(rows, channels),
        dlast.new_empty(dlast.shape),
    )


def _conv_shapes(x: Tensor, weight: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    starts = rest[-2]
    return torch.empty_like(x), x.new_empty(_rows(x, starts), x.shape[1], weight.shape[1] - 1)


def _conv_backward_shapes(
    dout: Tensor, dlast: Tensor, x: Tensor, weight: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    rows = len(dlast)
    return (
        torch.empty_like(x),
        weight.new_empty(rows, *weight.shape),
        weight.new_empty(rows, len(weight)),
        dlast.new_empty(dlast.shape),
    )


def _step_shapes(x: Tensor, conv: Tensor, ssm: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), conv.new_empty(conv.shape), ssm.new_empty(ssm.shape)


def _padded(states: int, channels: int) -> tuple[int, int]:
    """Returns the numbers of states and channels that the kernels work on, in whole vectors."""
    return -(-states // 4) * 4, -(-channels // 16) * 16


def _rows(x: Tensor, starts: Tensor | None) -> int:
    return len(x) if starts is None else len(starts) - 1


_SCAN = "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias"
_CONV = "Tensor x, Tensor weight, Tensor? bias, Tensor? initial, Tensor? starts, bool silu"
define(
    "selective_scan",
    f"{_SCAN}, Tensor? initial, Tensor? starts, bool softplus, bool train",
    3,
    _scan_shapes,
    cpu.selective_scan,
)
define(
    "selective_scan_backward",
    f"Tensor dout, Tensor dlast, Tensor fronts, {_SCAN}, Tensor? starts, bool softplus",
    9,
    _scan_backward_shapes,
    cpu.selective_scan_backward,
)
define("causal_conv1d", _CONV, 2, _conv_shapes, cpu.causal_conv1d)
define(
    "causal_conv1d_backward",
    f"Tensor dout, Tensor dlast, {_CONV}",
    4,
    _conv_backward_shapes,
    cpu.causal_conv1d_backward,
)
define(
    "mamba_step",
    "Tensor x, Tensor conv, Tensor ssm, Tensor in_proj, Tensor conv_weight, Tensor? conv_bias, "
    "Tensor x_proj, Tensor dt_proj, Tensor? dt_bias, Tensor A_log, Tensor D, Tensor out_proj, "
    "Tensor? in_bias, Tensor? out_bias, float? norm_eps",
    3,
    _step_shapes,
    cpu.mamba_step,
)
