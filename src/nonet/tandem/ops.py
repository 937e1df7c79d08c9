"""The operator of the kernel: its schema, and what it returns for torch.compile. It has no gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nonet.tandem.impl import cpu


def linear_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Returns ``(..., O)`` for rows and a weight that lie in memory in any way."""
    if weight.stride(1) != 1:
        weight = weight.contiguous()
    return product(x.contiguous(), weight, plain(bias))


def plain(bias: Tensor | None) -> Tensor | None:
    """Returns a bias that may be missing as the kernel reads it."""
    return None if bias is None else bias.float().contiguous()


def _shapes(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


def _operator(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    out = _shapes(x, weight, bias)
    rows = math.prod(x.shape[:-1])
    cpu.linear_rows(out, cpu.prepared(x, weight), rows, x, bias)
    return out


_library = torch.library.Library("nonet", "FRAGMENT")
_library.define("linear_rows(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
_library.impl("linear_rows", _operator, "CPU")
torch.library.register_fake("nonet::linear_rows", _shapes)

# By its overload, which takes less time to call than by its name.
product = torch.ops.nonet.linear_rows.default
