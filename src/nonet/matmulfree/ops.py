"""The operators of the kernels: their schemas, what they return for torch.compile, and their gradients.

Each operator allocates what it returns by the function that the compiler asks for shapes, and lets a
kernel fill it. States and bounds reach the kernels in float32, tokens as they are.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nonet.matmulfree.impl import cpu
from nonet.operators import define, ends, float32, learns


def hgrn_scan(
    i: Tensor,
    f: Tensor,
    *,
    initial_state: Tensor | None,
    from_logits: bool,
    lower_bound: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns all states (B, C, T) and the last (n, C)."""
    inputs = i, f, float32(lower_bound), float32(initial_state), ends(cu_seqlens)
    if learns(*inputs):
        return _HgrnScan.apply(*inputs, from_logits)
    return torch.ops.nonet.hgrn_states(*inputs, from_logits)


class _HgrnScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, ctx.logits = inputs
        h, last = torch.ops.nonet.hgrn_states(*inputs)
        ctx.save_for_backward(h, *tensors)
        return h, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: checkpointing computes them again for one reader
        *_, bound, initial, _ = saved
        di, df, dbound, dinitial = torch.ops.nonet.hgrn_states_backward(dh, dlast, *saved, ctx.logits)
        return (
            di,
            df,
            None if bound is None else dbound.sum(0),
            None if initial is None else dinitial,
            None,
            None,
        )


def _shapes(i: Tensor, f: Tensor, bound: Any, initial: Any, starts: Tensor | None, *_: Any) -> Any:
    rows = len(i) if starts is None else len(starts) - 1
    return torch.empty_like(i), i.new_empty(rows, i.shape[1], dtype=torch.float32)


def _backward_shapes(dh: Tensor, dlast: Tensor, h: Tensor, i: Tensor, f: Tensor, *_: Any) -> Any:
    return torch.empty_like(i), torch.empty_like(f), torch.empty_like(dlast), torch.empty_like(dlast)


_INPUTS = "Tensor i, Tensor f, Tensor? lower_bound, Tensor? initial, Tensor? starts, bool logits"
define("hgrn_states", _INPUTS, 2, _shapes, cpu.hgrn_scan)
define(
    "hgrn_states_backward",
    f"Tensor dh, Tensor dlast, Tensor h, {_INPUTS}",
    4,
    _backward_shapes,
    cpu.hgrn_scan_backward,
)
