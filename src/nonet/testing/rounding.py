"""What rounding does to a computation: a property of the computation, not of one processor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, overload

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from nonet.testing.budget import assert_within_budget

_STEP = 2.0**-30  # so small that effects are proportional to it, yet far above float64's own rounding
_PRODUCTS = ("aten::mm", "aten::bmm", "aten::addmm", "aten::baddbmm")
_EXACT = {  # whose results are values of their operands, or whole numbers
    f"aten::{name}"
    for name in (
        *("_to_copy", "abs", "amax", "amin", "cat", "ceil", "clamp", "clone", "constant_pad_nd", "copy_"),
        *("embedding", "fill", "fill_", "flip", "floor", "full", "full_like", "gather", "index", "index_put"),
        *("index_select", "maximum", "minimum", "neg", "randn", "roll", "round", "scalar_tensor", "scatter"),
        *("sign", "slice_scatter", "trunc", "where", "zero_"),
    )
}


@overload
def rounded(compute: Callable[[], Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]: ...


@overload
def rounded(
    compute: Callable[[], Sequence[Tensor]], dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]: ...


def rounded(compute: Callable[[], Any], dtype: torch.dtype) -> tuple[Any, Any]:
    """Returns what a float64 computation gives, and eight results that it might give in ``dtype``.

    The error of one plain run is luck: where a few roundings decide, it is tiny on one processor and large on
    the next. Each draw repeats the computation in float64 with the result of every operation moved at random,
    and scales the effect to the roundings of ``dtype``: Monte Carlo arithmetic (Parker 1997). The draws are
    the same on every processor and with every matrix library.

    Args:
        compute: takes nothing and returns a float64 tensor or several; it may use autograd. Where it asks for
            float32 on the way, as Transformers' norms do, it stays in float64.
        dtype: whose roundings are drawn.

    Returns:
        The exact result, and its draws on a first axis more, both in float64; or a list of each.
    """
    several = True

    def results() -> list[Tensor]:
        nonlocal several
        with Wide():
            found = compute()
        several = not isinstance(found, Tensor)
        return [x.detach() for x in (found if several else [found])]

    exact, moved = results(), []
    for seed in range(8):
        with _Moved(dtype, torch.Generator().manual_seed(seed)):
            moved.append(results())
    scale = torch.finfo(dtype).eps / _STEP
    drawn = [x + scale * (torch.stack(each) - x) for x, *each in zip(exact, *moved, strict=True)]
    return (exact, drawn) if several else (exact[0], drawn[0])


def assert_within_rounding(
    actual: Tensor | Sequence[Tensor],
    compute: Callable[[], Any],
    name: str = "result",
    dtype: torch.dtype | None = None,
) -> None:
    """Asserts that ``actual`` is what ``compute`` gives in float64, but for roundings.

    Args:
        actual: the tensor under test, or several.
        compute: what :func:`rounded` takes; gives as many.
        name: what is compared, for the message.
        dtype: that ``actual`` was computed in, where it is not its own.

    Raises:
        AssertionError: as :func:`nonet.testing.assert_within_budget`.
    """
    if isinstance(actual, Tensor):
        assert_within_rounding([actual], lambda: [compute()], name, dtype)
        return
    gold, plain = rounded(compute, dtype or actual[0].dtype)
    for place, results in enumerate(zip(actual, plain, gold, strict=True)):
        assert_within_budget(*results, name if len(gold) == 1 else f"{name} {place}")


class Wide(TorchFunctionMode):
    """Computes in float64 where float32 is asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        wide = [torch.float64 if a is torch.float32 else a for a in args]
        named = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        func = torch.Tensor.double if func is torch.Tensor.float else func
        return func(*wide, **named)


class _Moved(TorchDispatchMode):
    """Moves the result of every operation by up to a step, which stands for eps; sums by more, terms and all.

    A sum of n terms is rounded n times, in an order that nobody promises, so it and its terms move further:
    the roundings of four additions come to one move. Sums of half precision are taken in float32, where
    this counts for nothing. An operation that fuses others, such as the gradient of softmax, is taken apart.
    """

    def __init__(self, dtype: torch.dtype, generator: torch.Generator) -> None:
        super().__init__()
        self.half = torch.finfo(dtype).eps > torch.finfo(torch.float32).eps
        self.generator = generator

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _parts() and any(map(_floats, args)):
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
