"""What rounding does to a computation: a property of the computation, not of one processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_STEP = 2.0**-30  # so small that effects are proportional to it, yet far above float64's own rounding
_EXACT = {
    f"aten::{name}"
    for name in (
        "_to_copy abs amax amin cat clamp clone constant_pad_nd copy_ embedding fill fill_ flip full full_like "
        "gather index index_put index_select maximum minimum neg randn roll scalar_tensor scatter slice_scatter "
        "where zero_"
    ).split()
}
_PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")


def rounded(
    compute: Callable[[], Sequence[Tensor]], dtype: torch.dtype, draws: int = 8
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns what a float64 computation gives, and what it might give in ``dtype``.

    The error of one plain run is luck: where a few roundings decide, it is tiny on one processor and large on
    the next. Each draw repeats the computation in float64 with the operands of every operation moved at
    random, and scales the effect to the roundings of ``dtype``: Monte Carlo arithmetic (Parker 1997). The
    draws are the same on every processor and with every matrix library.

    Args:
        compute: takes nothing and returns float64 tensors; it may use autograd.
        dtype: whose roundings are drawn.
        draws: how many.

    Returns:
        The exact results, and for each of them its draws, ``(draws, ...)`` in float64.
    """
    exact = [x.detach() for x in compute()]
    scale = torch.finfo(dtype).eps / _STEP
    found: list[list[Tensor]] = [[] for _ in exact]
    for seed in range(draws):
        with _Moved(dtype, torch.Generator().manual_seed(seed)):
            results = compute()
        for mine, x, moved in zip(found, exact, results, strict=True):
            mine.append(x + scale * (moved.detach() - x))
    return exact, [torch.stack(mine) for mine in found]


class _Moved(TorchDispatchMode):
    """Moves the operands of every operation by up to a step, which stands for eps, and those of long sums more.

    A sum of n terms is rounded n times, in an order that nobody promises: the roundings of four additions come to
    a move of every term. Sums of half precision are taken in float32, where they count for nothing. An
    operation that fuses others, such as the gradient of softmax, is taken apart first.
    """

    def __init__(self, dtype: torch.dtype, generator: torch.Generator) -> None:
        super().__init__()
        self.half = torch.finfo(dtype).eps > torch.finfo(torch.float32).eps
        self.generator = generator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _parts():
            with self:
                return _parts()[func](*args, **kwargs)
        out = func(*args, **kwargs)
        schema = func._schema
        view = any(r.alias_info and not r.alias_info.is_write for r in schema.returns)
        if view or schema.name in _EXACT or not _floats(out):
            return out
        terms = _terms(schema.name, args, out)
        reach = _STEP * max(1.0, 1.0 if self.half else terms / 4) ** 0.5
        if schema.is_mutable:
            return out.copy_(self._move(out, reach))
        if terms > 1:
            out = func(*(self._move(x, reach) if _floats(x) else x for x in args), **kwargs)
        return self._move(out, reach)

    def _move(self, x: Tensor, reach: float) -> Tensor:
        part = torch.rand(x.shape, generator=self.generator, dtype=x.dtype)
        return part.mul_(2 * reach).add_(1 - reach).mul_(x)


@cache
def _parts() -> dict[Any, Callable[..., Any]]:
    return dict(torch.export.default_decompositions().items())


def _terms(name: str, args: tuple[Any, ...], out: Tensor) -> float:
    """How many terms an operation adds up for each of its results."""
    if name in _PRODUCTS:
        return args[-1].shape[-2]
    return max((x.numel() for x in args if _floats(x)), default=0) / max(1, out.numel())


def _floats(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype is torch.float64
