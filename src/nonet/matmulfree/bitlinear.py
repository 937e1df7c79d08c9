"""A linear layer with ternary weights and 8-bit activations, for training and for packing."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from nonet.matmulfree.packed import PackedTernary, absmean_ternary, pack_ternary


class BitLinear(nn.Linear):
    r"""A linear layer whose product needs additions only: ternary weights, 8-bit activations.

    .. math::
        n &= \mathrm{RMSNorm}(x), \quad s = 127 / \max(\max|n|, 10^{-5}), \quad
        \gamma = \max(\mathrm{mean}|W|, 10^{-5}) \\
        y &= \mathrm{round}(s\,n)\; \mathrm{clip}(\mathrm{round}(W / \gamma), -1, 1)^\top \cdot \gamma / s + b

    Each token has its own ``s``, each matrix its own :math:`\gamma`. Gradients pass the roundings as if
    they were not there (straight through). What is trained is the dense ``weight``, so steps have to be
    large enough to carry weights over a boundary: learning rates some times those of dense layers.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        bias: add a learned bias.
        eps: epsilon of the norm.
        device: where parameters are made.
        dtype: dtype of the parameters.

    Shapes: ``(..., in_features)`` to ``(..., out_features)``, in the dtype of the input. For backward it
    keeps the input, one byte for each of its entries and one for each weight.

    Complexity: ``2 in out`` operations a token and a few passes over input and weight. Source: Zhu et al.
    2024 (2406.02528), algorithm 1; Ma et al. 2024 (2402.17764), equations 1 to 3.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = False,
        eps: float = 1e-6,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.eps = eps
        self.norm_weight = nn.Parameter(torch.ones(in_features, device=device, dtype=dtype))

    def init_weights(self, std: float) -> None:
        """Sets the norm's weight to one; the matrix has had its values as any linear layer has."""
        nn.init.ones_(self.norm_weight)

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Returns the normed, rounded input times the rounded weight."""
        values, scale = absmean_ternary(self.weight.detach())
        return rounded_linear(x, values, scale, self.bias, self.norm_weight, self.eps, self.weight)

    def pack(self) -> PackedTernary:
        """Returns the ternary weight at two bits each, for :func:`nonet.matmulfree.ternary_linear`.

        ``ternary_linear(x, layer.pack(), layer.bias, layer.norm_weight, eps=layer.eps)`` is what the
        layer computes.
        """
        return pack_ternary(self.weight)

    def extra_repr(self) -> str:
        """Returns the arguments, for printing."""
        return f"{super().extra_repr()}, eps={self.eps}"


def rounded_linear(
    x: Tensor,
    values: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    norm_weight: Tensor | None,
    eps: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Returns the 8-bit rounding of ``x`` times ternary ``values`` times ``scale``, plus ``bias``.

    Both factors are whole numbers, so the product is exact, in any order of summation, while sums stay
    below ``2 ** 24``, up to which float32 holds every integer: 128 times a width up to 131072 does. So it is
    never taken in a narrower dtype. Under autocast only the result is narrowed, as that of any linear layer.

    Args:
        x: ``(..., in)``.
        values: ``(out, in)`` of -1, 0 and 1, in float32 or wider.
        scale: what a value of one stands for.
        bias: ``(out,)`` or None.
        norm_weight: ``(in,)`` for an RMSNorm in front, or None for no norm.
        eps: epsilon of the norm.
        weight: the dense matrix behind ``values``, when it is to have a gradient.
    """
    kind, rows = x.device.type, x.reshape(-1, x.shape[-1])
    values = values.to(torch.promote_types(x.dtype, values.dtype))
    with torch.autocast(kind, enabled=False):
        y = _RoundedLinear.apply(rows, norm_weight, weight, values, scale, eps, torch.is_grad_enabled())
        if bias is not None:
            y = y + bias
    narrowed = torch.is_autocast_enabled(kind) and x.dtype != torch.float64
    dtype = torch.get_autocast_dtype(kind) if narrowed else x.dtype
    return y.to(dtype).reshape(*x.shape[:-1], y.shape[-1])


class _RoundedLinear(torch.autograd.Function):
    """Norm, rounding and product in one node, which keeps integers as bytes and works in place."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor | None,
        weight: Tensor | None,
        values: Tensor,
        scale: Tensor,
        eps: float,
        train: bool,
    ) -> Tensor:
        # Rounding is decided in float32 or wider: bfloat16 could not tell 100 from 100.4.
        q = x.to(torch.promote_types(x.dtype, torch.float32), copy=True)
        inverse_rms = None
        if norm_weight is not None:
            square = torch.linalg.vector_norm(q, dim=-1, keepdim=True).square_()
            inverse_rms = (square / q.shape[-1] + eps).rsqrt_()
            q.mul_(inverse_rms).mul_(norm_weight)
        top = q.abs().amax(-1, keepdim=True).clamp_(min=1e-5)
        q.mul_(127 / top).round_()  # within -127 and 127 by the choice of scale: nothing to clip
        step = top / 127
        if train:
            integers = q.to(torch.int8), values.to(torch.int8)
            ctx.save_for_backward(x, norm_weight, inverse_rms, step, scale, *integers)
        return F.linear(q.to(values.dtype), values).mul_(step * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, inverse_rms, step, scale, q, values = ctx.saved_tensors
        grad_x = grad_norm = grad_weight = None
        if ctx.needs_input_grad[2]:
            grad_weight = grad.mT @ q.to(step.dtype).mul_(step).to(grad.dtype)
        if any(ctx.needs_input_grad[:2]):
            grad_x = (grad @ values.to(grad.dtype)).to(step.dtype).mul_(scale)
            if norm_weight is not None:
                n = x * inverse_rms
                product = grad_x * n
                grad_norm = product.sum(0)
                mean = (product @ norm_weight.to(step.dtype))[:, None] / x.shape[-1]
                grad_x.mul_(norm_weight).sub_(n.mul_(mean)).mul_(inverse_rms)
        return grad_x, grad_norm, grad_weight, None, None, None, None
