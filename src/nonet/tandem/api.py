r"""The product that verification is made of: a matrix by a few vectors."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from nonet.operators import learns
from nonet.select import implementation
from nonet.shapes import Tensors
from nonet.tandem import METHOD

_ROWS = Tensors(x="... I: float", weight="O I: float", bias="O: float?")


def linear_rows(
    x: Float[Tensor, "*rows I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None = None,
    impl: str = "auto",
) -> Float[Tensor, "*rows O"]:
    r"""Returns what a linear layer makes of a few rows, in the time that its weight takes to be read once.

    .. math:: y_{ro} = b_o + \sum_i W_{oi} x_{ri}

    With ``"cpu"`` a row's result is the same to the bit whatever other rows there are, so that tokens that
    are judged together get the very scores that each gets alone.

    Args:
        x: rows ``(..., I)``.
        weight: ``(O, I)``, in a dtype of its own: a float32 weight that is exact in bfloat16 gives the same
            result from half the memory when it is stored so.
        bias: ``(O,)`` or None.
        impl: ``"cpu"``, ``"torch"``, ``"reference"`` or ``"auto"``.

    Returns:
        ``(..., O)`` in the dtype of x; sums are taken in float32 at least, by ``"reference"`` in the wider
        dtype given. All arguments get gradients, except from ``"cpu"``.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a shape, dtype or device is wrong, or ``impl`` cannot serve the call.

    Complexity: ``2 R I O`` operations for R rows; ``"cpu"`` reads the weight from memory once, and from a
    cache again for each 8 rows (6 without AVX-512). Source: none, it is a matrix product; that tokens which
    are judged together should cost little more than one is what Leviathan et al. 2023 (2211.17192) rest on.
    """
    _ROWS.check(x, weight, bias)
    options = [f"a weight in {str(weight.dtype).removeprefix('torch.')}"]
    if learns(x, weight, bias):
        options.append("gradient")
    run = implementation(METHOD.op("linear_rows"), impl, x, options)
    return run(x, weight, bias)
