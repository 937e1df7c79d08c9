r"""The gated recurrence and ternary products in the fewest lines: the oracle of every faster path.

Runs in the dtype that it is given. Only the decisions of rounding are made in float32 or wider, so that
the same input is rounded to the same integers whatever the dtype of the rest. Zhu et al. 2024
(2406.02528) for the recurrence; Ma et al. 2024 (2402.17764), equations 1 to 3, for the quantisation.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import silu

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
    """Returns ``h_t = f_t h_{t-1} + i_t`` for every t, one step after the other, and the last."""
    if cu_seqlens is not None:
        run = partial(hgrn_scan, from_logits=from_logits, lower_bound=lower_bound)
        return one_by_one(run, cu_seqlens, initial_state, i=i, f=f)
    dtype = i.dtype
    if from_logits:
        f = torch.sigmoid(f)
        if lower_bound is not None:
            least = lower_bound[:, None]
            f = least + (1 - least) * f
        i = silu(i) * (1 - f)
    h = torch.zeros_like(i[..., 0]) if initial_state is None else initial_state
    states = []
    for i_t, f_t in zip(i.unbind(-1), f.unbind(-1), strict=True):
        h = f_t * h + i_t
        states.append(h)
    out = torch.stack(states, dim=-1)
    return out.to(dtype), h.to(torch.promote_types(dtype, torch.float32))


def ternary_linear(
    x: Tensor, packed: PackedTernary, bias: Tensor | None, norm_weight: Tensor | None, eps: float
) -> Tensor:
    """Returns ``RMSNorm(x)`` rounded to 8 bits, times the ternary matrix: floats throughout."""
    return _times(x, packed.dequantize(x.dtype), bias, norm_weight, eps)


def bit_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, norm_weight: Tensor | None, eps: float
) -> Tensor:
    """Returns what :class:`nonet.matmulfree.BitLinear` computes, from the dense weight that it trains."""
    w = weight.to(_at_least_float32(weight))
    s = 1 / w.abs().mean().clamp(min=1e-5)
    quantised = torch.clamp(torch.round(w * s), -1, 1) / s  # equations 1 to 3
    return _times(x, _straight_through(w, quantised).to(x.dtype), bias, norm_weight, eps)


def _times(x: Tensor, w: Tensor, bias: Tensor | None, norm_weight: Tensor | None, eps: float) -> Tensor:
    x_n = x.to(_at_least_float32(x))
    if norm_weight is not None:
        x_n = x_n * torch.rsqrt(x_n.square().mean(-1, keepdim=True) + eps) * norm_weight
    s = 127 / x_n.abs().amax(-1, keepdim=True).clamp(min=1e-5)  # a scale for every token
    quantised = torch.clamp(torch.round(x_n * s), -128, 127) / s
    return torch.nn.functional.linear(_straight_through(x_n, quantised).to(x.dtype), w, bias)


def _straight_through(x: Tensor, quantised: Tensor) -> Tensor:
    """Returns ``quantised``, whose gradient goes to ``x`` as if nothing had been rounded."""
    return x + (quantised - x).detach()


def _at_least_float32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
