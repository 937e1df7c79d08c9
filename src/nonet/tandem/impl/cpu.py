"""The kernel of the C library. A layer calls it hundreds of times a token, so that microseconds count."""

from __future__ import annotations

import struct

from torch import Tensor

from nonet.native import LINEAR, library, storage

_REST = struct.Struct("4q")  # rows, x, out, bias


def prepared(x: Tensor, weight: Tensor) -> bytes:
    """Returns the beginning of the kernel's struct, which is the same for all x of a dtype.

    Args:
        x: anything of that dtype.
        weight: ``(O, I)``, the numbers of a row adjacent.
    """
    outputs, inputs = weight.shape
    args = LINEAR.pack(
        dtype=storage(x),
        weight_dtype=storage(weight),
        inputs=inputs,
        outputs=outputs,
        stride=weight.stride(0),
        weight=weight,
    )
    return args[: LINEAR.offsets["rows"]]


def linear_rows(out: Tensor, beginning: bytes, rows: int, x: Tensor, bias: Tensor | None) -> None:
    """Fills the output; x and bias have no gaps, and the bias is float32."""
    rest = _REST.pack(rows, x.data_ptr(), out.data_ptr(), 0 if bias is None else bias.data_ptr())
    library().call("linear_rows", beginning + rest)
