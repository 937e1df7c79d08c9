r"""The operations of LoRA: a linear layer with a low-rank term, and many such terms in one product."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nonet.lora import METHOD
from nonet.select import implementation
from nonet.shapes import check_floating, check_shape

_LINEAR, _GROUPED = METHOD.op("lora_linear"), METHOD.op("grouped_lora")


def lora_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    a: Float[Tensor, "R in"],
    b: Float[Tensor, "out R"],
    scale: float,
    keep: Bool[Tensor, "*batch in"] | None = None,
    *,
    impl: str = "auto",
) -> Float[Tensor, "*batch out"]:
    r"""Returns a linear layer's output plus a low-rank term, in one output tensor.

    .. math:: y = x W^\top + \beta + s\, (m \odot x)\, A^\top B^\top

    Under ``torch.autocast`` all products are computed in its dtype, as ``torch.nn.functional.linear`` does.
    For backward the input, :math:`(m \odot x) A^\top` and the mask are kept, nothing of the output's size;
    the gradient of a weight that is frozen is not formed. It can be differentiated once. On a processor
    without products of half precision they are computed in float32, which is many times faster there.

    Args:
        x: input ``(..., in)``.
        weight: W ``(out, in)``; any strides.
        bias: :math:`\beta` ``(out,)``, or None.
        a: first factor A ``(R, in)``; cast to the dtype of the products, as B is, so that factors may be kept
            in float32 beside a weight of half precision.
        b: second factor B ``(out, R)``.
        scale: s. With dropout of probability p, this is the place of its factor: give ``s / (1 - p)``.
        keep: the mask m in the shape of x, false where an input of A is dropped; None keeps all.
        impl: ``"torch"``, ``"reference"`` or ``"auto"``.

    Returns:
        ``(..., out)`` in the dtype of x.

    Raises:
        ValueError: a shape or dtype is wrong, or ``impl`` cannot serve the call.

    Complexity: ``2 n (in out + R (in + out))`` operations for n rows of x. Source: Hu et al. 2021
    (2106.09685), equation 3.
    """
    if not (
        weight.dim() == a.dim() == 2
        and weight.shape[1:] == a.shape[1:] == x.shape[-1:]
        and b.shape == (weight.shape[0], a.shape[0])
        and (bias is None or bias.shape == weight.shape[:1])
        and (keep is None or keep.shape == x.shape)
    ):
        _explain(x, weight, bias, a, b, keep)
    if keep is not None and keep.dtype != torch.bool:
        raise ValueError(f"keep must be of torch.bool; got {keep.dtype}")
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):  # inside, a product may ask for another dtype
            return lora_linear(x, weight, bias, a, b, scale, keep, impl=impl)
    if not (x.is_floating_point() and x.dtype == weight.dtype and a.is_floating_point()):
        check_floating(x=x, weight=weight)
        check_floating(a=a)
    run = implementation(_LINEAR, impl, x)
    return run(x, weight, bias, a, b, scale, keep)


def grouped_lora(
    x: Float[Tensor, "B T in"],
    a: Float[Tensor, "K R in"],
    b: Float[Tensor, "K out R"],
    scales: Float[Tensor, " K"],
    rows: Int[Tensor, " B"] | None = None,
    base: Float[Tensor, "B T out"] | None = None,
    *,
    impl: str = "auto",
) -> Float[Tensor, "B T out"]:
    r"""Returns the low-rank terms of a batch whose rows use different adapters, in one grouped product.

    .. math:: y_b = \beta_b + s_k\, x_b A_k^\top B_k^\top, \quad k = \mathrm{rows}_b

    Args:
        x: input ``(B, T, in)``.
        a: first factors ``(K, R, in)``; an adapter of a smaller rank is filled up with zeros.
        b: second factors ``(K, out, R)``.
        scales: ``(K,)``, of any floating dtype.
        rows: the adapter of each row ``(B,)``, from 0 up to K - 1; -1 for none. None when the factors are
            those of the rows, in their order; K is then B.
        base: what the terms are added to ``(B, T, out)``; None for zero.
        impl: ``"torch"``, ``"reference"`` or ``"auto"``.

    Returns:
        ``(B, T, out)`` in the dtype of x.

    Raises:
        ValueError: a shape or dtype is wrong, or ``impl`` cannot serve the call.
        IndexError: ``rows`` names an adapter that is not there.

    Complexity: ``2 B T R (in + out)`` operations and, given ``rows``, a copy of each row's factors.
    Source: Hu et al. 2021 (2106.09685), equation 3, for every row.
    """
    if not (
        x.dim() == a.dim() == b.dim() == 3
        and a.shape[2] == x.shape[2]
        and b.shape[::2] == a.shape[:2]
        and scales.shape == a.shape[:1]
        and (len(a) == len(x) if rows is None else rows.shape == x.shape[:1])
        and (base is None or base.shape == (*x.shape[:2], b.shape[1]))
    ):
        _explain_group(x, a, b, scales, rows, base)
    if not (x.is_floating_point() and x.dtype == a.dtype == b.dtype):
        check_floating(x=x, a=a, b=b)
    if rows is None and impl == "reference":  # which knows an adapter by its index alone
        rows = torch.arange(len(x), device=x.device)
    run = implementation(_GROUPED, impl, x)
    return run(x, a, b, scales, rows, base)


# A layer asks at every token, so that what is wrong is found out only when something is.
def _explain(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, keep: Tensor | None
) -> None:
    """Raises ValueError for the argument of :func:`lora_linear` that does not fit."""
    sizes: dict[str, int] = {}
    check_shape("weight", weight, "out in", sizes)
    check_shape("a", a, "R in", sizes)
    check_shape("b", b, "out R", sizes)
    if bias is not None:
        check_shape("bias", bias, "out", sizes)
    if x.shape[-1:] != (sizes["in"],):
        raise ValueError(f"x must have the shape (..., in={sizes['in']}); got {tuple(x.shape)}")
    if keep is not None and keep.shape != x.shape:
        raise ValueError(f"keep must have the shape of x, {tuple(x.shape)}; got {tuple(keep.shape)}")


def _explain_group(
    x: Tensor, a: Tensor, b: Tensor, scales: Tensor, rows: Tensor | None, base: Tensor | None
) -> None:
    """Raises ValueError for the argument of :func:`grouped_lora` that does not fit."""
    sizes: dict[str, int] = {}
    K = "B" if rows is None else "K"
    check_shape("x", x, "B T in", sizes)
    check_shape("a", a, f"{K} R in", sizes)
    check_shape("b", b, f"{K} out R", sizes)
    check_shape("scales", scales, K, sizes)
    if rows is not None:
        check_shape("rows", rows, "B", sizes)
    if base is not None:
        check_shape("base", base, "B T out", sizes)
