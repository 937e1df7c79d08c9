"""Feed-forward in parts of the sequence, so that its wide activations never exist all at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nonet.shapes import check_whole


def chunked(function: Callable[[Tensor], Tensor], x: Tensor, size: int, dim: int = 1) -> Tensor:
    r"""Returns ``function(x)``, computed on ``size`` places of axis ``dim`` at a time.

    .. math:: Y = [F(X^{(1)}); \ldots; F(X^{(c)})]

    Args:
        function: acts on every place by itself, as a feed-forward layer or a language model's head do,
            and keeps axis ``dim``.
        x: any shape.
        size: places at a time; the last part may be shorter.
        dim: the axis of places.

    Returns:
        What ``function(x)`` returns. The peak of memory falls where a part's activations are freed before
        the next: without gradients, or as a branch of :func:`nonet.reformer.reversible.reversible`.

    Raises:
        TypeError: ``function`` cannot be called, or ``x`` is no tensor.
        ValueError: ``size`` is no whole number above zero, or ``x`` has no axis ``dim``.

    Source: Kitaev et al. 2020 (2001.04451), section 3, "Chunking".
    """
    if not callable(function):
        raise TypeError(f"function must be callable; got {type(function).__name__}")
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor; got {type(x).__name__}")
    if x.layout is not torch.strided:
        raise ValueError(f"x must be dense, which its to_dense() is; got {x.layout}")
    check_whole(size=size)
    check_whole(-x.dim(), x.dim() - 1, dim=dim)
    return torch.cat([function(part) for part in x.split(size, dim)], dim=dim)
