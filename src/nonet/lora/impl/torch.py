"""The low-rank term added in place to the product with the weight, and one product for many adapters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from nonet.shapes import zeroed


def _slow() -> tuple[torch.dtype, ...]:
    """Returns the halves that this processor cannot multiply but number by number."""
    known = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
    return tuple(d for d, name in known.items() if not getattr(torch.ops.mkldnn, name, lambda: True)())


# Products of these go through float32, which is many times as fast, casts included (`nonet bench lora`); for
# one or two rows it is not.
_SLOW, _FEW = _slow(), 2


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, keep: Tensor | None
) -> Tensor:
    """Makes one output tensor, and keeps for backward the input, ``A x^T`` and the mask."""
    rows = x.reshape(-1, x.shape[-1])
    keep = None if keep is None else keep.reshape(rows.shape)
    if torch.is_grad_enabled():
        out = _LoraLinear.apply(rows, weight, bias, a, b, scale, keep)
    else:
        out, _ = _product(rows, weight, bias, a, b, scale, keep)
    return out.view(*x.shape[:-1], out.shape[-1])


def grouped_lora(
    x: Tensor, a: Tensor, b: Tensor, scales: Tensor, rows: Tensor | None, base: Tensor | None
) -> Tensor:
    """Picks each row's factors and multiplies all rows at once."""
    scale = scales[:, None, None]
    if rows is not None:
        pick = rows.clamp(min=0)
        a, b, scale = a.index_select(0, pick), b.index_select(0, pick), scale.index_select(0, pick)
        if not rows.is_cpu or torch.compiler.is_compiling() or bool((rows < 0).any()):
            # Rows without an adapter picked the first, whose NaN no weight of zero hides.
            none = (rows < 0)[:, None, None]
            x, a, b, scale = (zeroed(t, none) for t in (x, a, b, scale))
    low = (torch.bmm(x, a.mT) * scale).to(x.dtype)
    return torch.bmm(low, b.mT) if base is None else torch.baddbmm(base, low, b.mT)


def _product(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, keep: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Returns the output and ``A m(x)^T``; the short side comes first, which libraries multiply faster."""
    dtype = x.dtype
    x, weight, a, b = _multiplied(x, weight, a, b)
    out = linear(x, weight, None if bias is None else bias.to(x.dtype))
    low = a @ _masked(x, keep).mT
    # By zero nothing is multiplied there, so that NaN would be hidden.
    scaled, alpha = (low, scale) if scale else (low * 0.0, 1.0)
    return out.addmm_(scaled.mT, b.mT, alpha=alpha).to(dtype), low.to(dtype)


def _multiplied(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Returns the factors of products, x with its rows first, in the dtype to multiply in."""
    slow = x.device.type == "cpu" and x.dtype in _SLOW and len(x) > _FEW
    dtype = torch.float32 if slow else x.dtype
    return tuple(t.to(dtype) for t in (x, *others))


def _masked(x: Tensor, keep: Tensor | None) -> Tensor:
    return x if keep is None else x * keep.view(torch.uint8)  # a product with booleans takes longer


class _LoraLinear(torch.autograd.Function):
    """A frozen weight's gradient is never formed, and the gradient of x is summed in one tensor."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        keep: Tensor | None,
    ) -> Tensor:
        out, low = _product(x, weight, bias, a, b, scale, keep)
        ctx.scale = scale
        ctx.save_for_backward(x, weight, a, b, low, keep)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *given, keep = ctx.saved_tensors
        x, weight, a, b, low, grad = _multiplied(*given, grad)
        for_x, for_weight, for_bias, for_a, for_b, *_ = ctx.needs_input_grad
        grad_x = grad_weight = grad_bias = grad_a = grad_b = None
        if for_x or for_a:
            grad_low = (b.mT @ grad.mT).mul_(ctx.scale)
        if for_x:
            grad_x = grad @ weight
            if keep is None:
                grad_x.addmm_(grad_low.mT, a)
            else:
                grad_x.add_(_masked(grad_low.mT @ a, keep))
        if for_weight:
            grad_weight = grad.mT @ x
        if for_bias:
            grad_bias = grad.sum(0)
        if for_a:
            grad_a = grad_low @ _masked(x, keep)
        if for_b:
            grad_b = (low @ grad).mul_(ctx.scale).mT
        x, weight, a, b, _ = given
        grads = ((grad_x, x), (grad_weight, weight), (grad_bias, weight), (grad_a, a), (grad_b, b))
        return *(None if g is None else g.to(t.dtype) for g, t in grads), None, None
