"""The check of a chapter: what is fast errs at most twice as much as what is simple, against float64."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nonet.testing import assert_within_budget, rounded


def check(what: str, fast: Tensor, plain: Tensor, exact: Tensor, scale: float = 0.0) -> None:
    """Asserts the budget of errors, and prints how far two results are from the exact one.

    Args:
        what: what is checked, for the line that is printed and for the error.
        fast: the result under test.
        plain: the simple one, of the same shape and dtype.
        exact: the simple one in float64, of the same shape.
        scale: as :func:`nonet.testing.assert_within_budget` takes it.

    Raises:
        AssertionError: ``fast`` is beyond the budget that ``plain`` gives it.
    """
    assert_within_budget(fast, plain, exact, what, scale=scale)
    _tell(what, plain.dtype, _error([fast], [exact]), _error([plain], [exact]))


def check_op(op: Callable[..., Any], inputs: Mapping[str, Tensor], *args: Any, **options: Any) -> None:
    """Checks what models call of an op while they are trained against its oracle: output and gradients.

    Args:
        op: takes ``impl``, and returns a tensor.
        inputs: float32 tensors by name, in the order of the op's arguments; each gets a gradient.
        args: what follows them.
        options: of the op.

    Raises:
        AssertionError: the output or a gradient is beyond the budget that the oracle gives it.
    """

    def results(impl: str, dtype: torch.dtype) -> list[Tensor]:
        given = [x.detach().to(dtype).requires_grad_() for x in inputs.values()]
        out = op(*given, *args, impl=impl, **options)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        return [out.detach(), *torch.autograd.grad((out * weights).sum(), given)]

    fast, plain = (results(impl, torch.float32) for impl in ("auto", "reference"))
    exact, drawn = rounded(lambda: results("reference", torch.float64), torch.float32)
    for name, f, p, d, gold in zip(("output", *inputs), fast, plain, drawn, exact, strict=True):
        assert_within_budget(f, torch.cat([d, p[None].double()]), gold, f"{op.__name__}, {name}")
    what = f"{op.__name__}, output and gradients"
    _tell(what, torch.float32, _error(fast, exact), _error(plain, exact))


def _error(found: list[Tensor], exact: list[Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(found, exact, strict=True))


def _tell(what: str, dtype: torch.dtype, error: float, usual: float) -> None:
    simple = f"the simple way in {str(dtype).removeprefix('torch.')}"
    sys.stdout.write(f"{what}: at most {error:.1e} from float64, where {simple} is {usual:.1e}\n")
