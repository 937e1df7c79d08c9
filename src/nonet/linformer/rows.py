"""Moving the tokens of each row of a batch on their own, so that real ones start at the first place.

All tensors are ``(B, G, L, ...)``. What comes from beyond an end is a copy of some token and stands where
no query looks.
"""

from __future__ import annotations

import torch
from torch import Tensor


def shift(x: Tensor, by: Tensor, size: int | None = None) -> Tensor:
    """Returns ``size`` tokens of each row (L by default), from its token ``by[b]`` on."""
    size = x.shape[2] if size is None else size
    return _take(x, torch.arange(size, device=x.device) + by[:, None])


def join(old: Tensor, new: Tensor, kept: Tensor) -> Tensor:
    """Returns the first ``kept[b]`` tokens of each row of ``old``, and behind them those of ``new``."""
    both = torch.cat([old, new], dim=2)
    place = torch.arange(both.shape[2], device=new.device)
    skip = old.shape[2] - kept[:, None]
    return _take(both, torch.where(place < kept[:, None], place, place + skip))


def _take(x: Tensor, index: Tensor) -> Tensor:
    index = index.clamp(0, x.shape[2] - 1)
    return torch.take_along_dim(x, index.view(len(index), 1, index.shape[1], *[1] * (x.dim() - 3)), dim=2)
