"""The check of a chapter: what is fast errs at most twice as much as what is simple, against float64."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nonet.testing import assert_within_budget


def check(what: str, fast: Tensor, plain: Tensor, exact: Tensor, scale: float = 0.0) -> None:
    """Prints how far two results are from the exact one, after asserting the budget of errors.

    Args:
        what: is checked.
        fast: the result under test.
        plain: the simple one in the same dtype.
        exact: the simple one in float64.
        scale: as :func:`nonet.testing.assert_within_budget` takes it.

    Raises:
        AssertionError: ``fast`` errs more than twice as much as ``plain``.
    """
    assert_within_budget(fast, plain, exact, what, scale=scale)
    _tell(what, _error([fast], [exact]), _error([plain], [exact]))


def check_op(op: Callable[..., Any], inputs: Mapping[str, Tensor], *args: Any, **options: Any) -> None:
    """Checks what models call of an op against its oracle, output and gradients of all inputs.

    Args:
        op: takes ``impl``, and returns a tensor.
        inputs: float32 tensors by name, in the order of the op's arguments; each gets a gradient.
        args: what follows them.
        options: of the op.

    Raises:
        AssertionError: the output or a gradient errs more than twice as much as the oracle's.
    """

    def results(impl: str, dtype: torch.dtype) -> list[Tensor]:
        given = [x.detach().to(dtype).requires_grad_() for x in inputs.values()]
        out = op(*given, *args, impl=impl, **options)
        weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
        return [out.detach(), *torch.autograd.grad((out * weights).sum(), given)]

    fast, plain = (results(impl, torch.float32) for impl in ("auto", "reference"))
    exact = results("reference", torch.float64)
    for name, *three in zip(("output", *inputs), fast, plain, exact, strict=True):
        assert_within_budget(*three, f"{op.__name__}, {name}")
    _tell(f"{op.__name__}, output and gradients", _error(fast, exact), _error(plain, exact))


def _error(found: list[Tensor], exact: list[Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(found, exact, strict=True))


def _tell(what: str, error: float, usual: float) -> None:
    told = f"{what}: at most {error:.1e} from float64, where the simple way in float32 is {usual:.1e}"
    sys.stdout.write(told + "\n")
