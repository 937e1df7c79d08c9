"""The product in PyTorch, with sums in float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear


def linear_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Multiplies in the wider of both dtypes, which copies the narrower argument."""
    wide = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    return linear(x.to(wide), weight.to(wide), None if bias is None else bias.to(wide)).to(x.dtype)
