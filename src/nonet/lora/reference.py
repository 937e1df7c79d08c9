r"""The low-rank term in the fewest lines: the oracle of every faster path.

Runs in the dtype that it is given. Hu et al. 2021 (LoRA), section 4.1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float, keep: Tensor | None
) -> Tensor:
    """Returns ``W x + bias + scale B A m(x)``: equation 3, with a mask on what A reads."""
    a, b = a.to(x.dtype), b.to(x.dtype)
    out = x @ weight.mT
    if bias is not None:
        out = out + bias
    return (out + scale * ((x if keep is None else x * keep) @ a.mT @ b.mT)).to(x.dtype)


def grouped_lora(
    x: Tensor, a: Tensor, b: Tensor, scales: Tensor, rows: Tensor, base: Tensor | None
) -> Tensor:
    """Returns ``base + scale_k B_k A_k x`` row by row, k being the row's adapter and -1 none."""
    nothing = x.new_zeros(1, x.shape[1], b.shape[1])
    terms = [
        nothing if k < 0 else scales[k] * (row @ a[k].mT @ b[k].mT)[None]
        for row, k in zip(x, rows.tolist(), strict=True)
    ]
    out = torch.cat([nothing[:0], *terms])
    return out if base is None else base + out
