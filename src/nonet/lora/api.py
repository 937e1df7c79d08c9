r"""The operations of LoRA: a linear layer with a low-rank term, and many such terms in one product."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from nonet.lora import METHOD
from nonet.select import implementation
from nonet.shapes import Tensors, check_number, check_values

_LINEAR, _GROUPED = METHOD.op("lora_linear"), METHOD.op("grouped_lora")
_ONE = Tensors(
    "in",
    x="... in",
    weight="out in: float",
    bias="out: float?",
    a="R in: float",
    b="out R: float",
    keep="... in: bool?",
)
_MANY = Tensors(
    x="B T in",
    a="K R in",
    b="K out R",
    scales="K: float",
    rows="B: whole?",
    base="B T out: float?",
)


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
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype, device or ``scale`` is wrong, or ``impl`` cannot serve the call.

    Complexity: ``2 n (in out + R (in + out))`` operations for n rows of x. Source: Hu et al. 2021
    (2106.09685), equation 3.
    """
    _ONE.check(x, weight, bias, a, b, keep)
    check_number(scale=scale)
    if not x.is_meta and torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
        with torch.autocast(x.device.type, enabled=False):  # inside, a product may ask for another dtype
            return lora_linear(x, weight, bias, a, b, scale, keep, impl=impl)
    if weight.dtype != x.dtype:
        raise ValueError(f"weight must be of the dtype of x, {x.dtype}; got {weight.dtype}")
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
        rows: the adapter of each row ``(B,)``, from 0 up to K - 1; -1 for none: such a row reads no adapter,
            nor its own x, whatever they hold. None when the factors are those of the rows, in their order;
            K is then B.
        base: what the terms are added to ``(B, T, out)``; None for zero.
        impl: ``"torch"``, ``"reference"`` or ``"auto"``.

    Returns:
        ``(B, T, out)`` in the dtype of x.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype or device is wrong, ``rows`` names an adapter that is not there, or
            ``impl`` cannot serve the call.

    Complexity: ``2 B T R (in + out)`` operations and, given ``rows``, a copy of each row's factors.
    Source: Hu et al. 2021 (2106.09685), equation 3, for every row.
    """
    sizes = _MANY.check(x, a, b, scales, rows, base)
    given, adapters = sizes["B"], sizes["K"]
    if rows is None and adapters != given:
        raise ValueError(f"a must hold the factors of every row, K=B={given}; got K={adapters}")
    if rows is not None and not adapters:
        raise ValueError("a must hold an adapter for rows to name; got K=0")
    check_values(-1, adapters - 1, rows=rows)
    if rows is None and impl == "reference":  # which knows an adapter by its index alone
        rows = torch.arange(given, device=x.device)
    run = implementation(_GROUPED, impl, x)
    if base is not None and base.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"base must be of the dtype of x, {x.dtype}; got {base.dtype}")
    return run(x, a, b, scales, rows, base)
