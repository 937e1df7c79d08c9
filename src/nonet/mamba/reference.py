r"""The selective state space in the fewest lines: the oracle of every faster path.

Runs in the dtype that it is given, so that float64 inputs give the exact answer and bfloat16 inputs
the answer of plain eager PyTorch. Gu and Dao 2023 (Mamba), algorithm 2.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear, silu, softplus

from nonet.shapes import one_by_one


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
    """Returns the output (B, C, T) and the last state (B, C, N), one token at a time."""
    if cu_seqlens is not None:
        run = partial(selective_scan, A=A, D=D, delta_bias=delta_bias, delta_softplus=delta_softplus)
        return one_by_one(run, cu_seqlens, initial_state, u=u, delta=delta, B=B, C=C, z=z)
    dt = delta if delta_bias is None else delta + delta_bias[:, None]
    dt = softplus(dt) if delta_softplus else dt
    h = u.new_zeros(u.shape[0], *A.shape) if initial_state is None else initial_state
    ys = []
    for u_t, dt_t, B_t, C_t in zip(*(x.unbind(-1) for x in (u, dt, B, C)), strict=True):
        decay = torch.exp(dt_t[..., None] * A)  # equation 4, the zero-order hold
        # The authors' code takes B over the step as it is (Euler), not by equation 4.
        h = decay * h + dt_t[..., None] * B_t[:, None] * u_t[..., None]  # equation 2a
        ys.append((h * C_t[:, None]).sum(-1))  # equation 2b
    y = torch.stack(ys, dim=-1)
    if D is not None:
        y = y + D[:, None] * u
    if z is not None:
        y = y * silu(z)
    return y.to(u.dtype), h.to(torch.promote_types(u.dtype, torch.float32))


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None,
    activation: str | None,
    initial_state: Tensor | None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns each channel's weighted sum of its last W inputs, and the last W - 1 inputs."""
    if cu_seqlens is not None:
        run = partial(causal_conv1d, weight=weight, bias=bias, activation=activation)
        return one_by_one(run, cu_seqlens, initial_state, x=x)
    taps = weight.shape[1]
    before = x.new_zeros(*x.shape[:2], taps - 1) if initial_state is None else initial_state
    seen = torch.cat([before, x], dim=-1)
    y = (seen.unfold(-1, taps, 1) * weight[:, None]).sum(-1)
    if bias is not None:
        y = y + bias[:, None]
    if activation == "silu":
        y = silu(y)
    return y.to(x.dtype), seen[:, :, x.shape[2] :]


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
    """Returns a block's output (B, E) for one token and its two states: both operations on T = 1."""
    N, rank = A_log.shape[1], dt_proj.shape[1]
    new, z = linear(x, in_proj, in_bias)[..., None].chunk(2, dim=1)
    before = conv_state[..., conv_state.shape[2] - conv_weight.shape[1] + 1 :]
    u, _ = causal_conv1d(new, conv_weight, bias=conv_bias, activation="silu", initial_state=before)
    parts = linear(u[..., 0], x_proj).split((rank, N, N), dim=1)
    if norm_eps is not None:
        parts = tuple(p * torch.rsqrt(p.square().mean(1, keepdim=True) + norm_eps) for p in parts)
    r, B, C = parts
    y, h = selective_scan(
        u,
        linear(r, dt_proj)[..., None],
        -torch.exp(A_log),
        B[..., None],
        C[..., None],
        D=D,
        z=z,
        delta_bias=dt_bias,
        delta_softplus=True,
        initial_state=ssm_state,
    )
    conv = torch.cat([conv_state, new], dim=-1)[..., 1:].to(conv_state.dtype)
    return linear(y[..., 0], out_proj, out_bias), conv, h
