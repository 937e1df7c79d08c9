"""The conformance checks: what every implementation of every op is held to.

A check takes a case, the function under test and the oracle, both called by keyword, and raises
AssertionError when the function is wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nonet.testing.budget import assert_within_budget
from nonet.testing.case import Arguments, Case, Function, call, cast

Check = Callable[[Case, Function, Function], None]


def outputs_and_gradients(case: Case, function: Function, oracle: Function) -> None:
    """Outputs and all gradients are within the budget at every length, in float32 and bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        for length in case.lengths:
            _compare(case, function, oracle, _arguments(case, length, dtype))


def any_strides(case: Case, function: Function, oracle: Function) -> None:
    """Arguments may lie in memory in any order."""
    arguments = _arguments(case, case.lengths[-1], torch.float32)
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.dim() > 1:
            arguments[name] = value.transpose(-1, -2).contiguous().transpose(-1, -2)
    _compare(case, function, oracle, arguments)


def the_past_stays(case: Case, function: Function, oracle: Function) -> None:
    """Changing the future of a causal op leaves its past as it was."""
    if not case.causal:
        return
    for length in case.lengths[1:]:
        arguments = _arguments(case, length, torch.float32)
        for cut in {1, length // 2, length - 1}:
            other = {
                name: _rewrite(value, case.time[name], cut) if name in case.time else value
                for name, value in arguments.items()
            }
            kept = [_before(case, call(f, a), cut) for f, a in (
                (function, other), (oracle, arguments), (oracle, cast(arguments, torch.float64))
            )]  # fmt: skip
            for name, actual, plain, gold in zip(case.outputs, *kept, strict=True):
                if name in case.time:
                    assert_within_budget(actual, plain, gold, f"{name} before {cut} of {length}")


def parts_make_the_whole(case: Case, function: Function, oracle: Function) -> None:
    """Two calls, the second continuing from the first, give what one call gives."""
    if case.split is None:
        return
    for length in case.lengths[1:]:
        arguments = _arguments(case, length, torch.float32)
        plain = call(oracle, arguments)
        gold = call(oracle, cast(arguments, torch.float64))
        for cut in {1, length // 2, length - 1}:
            parts = case.split(function, arguments, cut)
            for name, a, p, g in zip(case.outputs, parts, plain, gold, strict=True):
                assert_within_budget(a, p, g, f"{name} in parts of {cut} and {length - cut}")


def rows_are_alone(case: Case, function: Function, oracle: Function) -> None:
    """A row of a batch does not depend on the other rows."""
    if not case.batch:
        return
    arguments = _arguments(case, case.lengths[-1], torch.float32)
    rows = arguments[case.batch[0]].shape[0]
    plain = call(oracle, arguments)
    gold = call(oracle, cast(arguments, torch.float64))
    for row in range(rows):
        alone = {
            name: value[row : row + 1] if name in case.batch and value is not None else value
            for name, value in arguments.items()
        }
        for name, a, p, g in zip(case.outputs, call(function, alone), plain, gold, strict=True):
            assert_within_budget(a, p[row : row + 1], g[row : row + 1], f"{name} of row {row}")


def same_again(case: Case, function: Function, oracle: Function) -> None:
    """A second call gives the same bits, and does not change its arguments."""
    arguments = _arguments(case, case.lengths[-1], torch.float32)
    before = {n: v.clone() for n, v in arguments.items() if isinstance(v, Tensor)}
    first, second = call(function, arguments), call(function, arguments)
    for name, a, b in zip(case.outputs, first, second, strict=True):
        assert torch.equal(a, b), f"{name} differs between two calls"
    for name, value in before.items():
        assert torch.equal(value, arguments[name]), f"{name} was changed by the call"


def poisoned_memory(case: Case, function: Function, oracle: Function) -> None:
    """Memory that was not written is not read: fresh tensors are filled with NaN."""
    mode = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # this fills torch.empty with NaN
    try:
        for length in case.lengths:
            _compare(case, function, oracle, _arguments(case, length, torch.float32))
    finally:
        torch.use_deterministic_algorithms(mode)


CHECKS: dict[str, Check] = {
    check.__name__: check
    for check in (
        outputs_and_gradients,
        any_strides,
        the_past_stays,
        parts_make_the_whole,
        rows_are_alone,
        same_again,
        poisoned_memory,
    )
}


def _arguments(case: Case, length: int, dtype: torch.dtype) -> Arguments:
    return cast(case.make(length, torch.Generator().manual_seed(length)), dtype)


def _compare(case: Case, function: Function, oracle: Function, arguments: Arguments) -> None:
    label = f"{case.op} ({case.label})"
    exact = cast(arguments, torch.float64)
    gold_outs, gold_grads = _run(case, oracle, exact)
    plain_outs, plain_grads = _run(case, oracle, arguments)
    outs, grads = _run(case, function, arguments)
    for name, a, p, g in zip(case.outputs, outs, plain_outs, gold_outs, strict=True):
        # A sum of terms that cancel is rounded as its terms are, in whatever order a processor takes them.
        largest = g[torch.isfinite(g)].abs().max().item() if g.isfinite().any() else 0.0
        assert_within_budget(a, p, g, f"{label} {name} {a.dtype}", scale=largest)
    # A gradient that cancels to nothing (a single key) is as exact as the others are large.
    scale = max((g.abs().max().item() for g in gold_grads.values()), default=0.0)
    for name in gold_grads:
        found = (grads[name], plain_grads[name], gold_grads[name])
        assert_within_budget(*found, f"{label} gradient of {name} {grads[name].dtype}", scale=scale)


def _run(case: Case, function: Function, arguments: Arguments) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Returns the outputs, and the gradients of a fixed weighted sum of them."""
    names = [n for n in case.gradients if arguments.get(n) is not None]
    leaves = {n: arguments[n].detach().clone().requires_grad_() for n in names}
    outs = call(function, {**arguments, **leaves})
    if not names:
        return list(outs), {}
    generator = torch.Generator().manual_seed(0)
    total = sum(
        (o * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o)).sum()
        for o in outs
        if o.requires_grad
    )
    grads = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True)  # type: ignore[arg-type]
    return [o.detach() for o in outs], dict(zip(names, grads, strict=True))


def _rewrite(value: Tensor | None, axis: int, cut: int) -> Tensor | None:
    """Returns a copy whose entries from ``cut`` on are others of the same kind."""
    if value is None:
        return None
    head, tail = value.narrow(axis, 0, cut), value.narrow(axis, cut, value.shape[axis] - cut)
    return torch.cat([head, tail.flip(axis) * 0.5], dim=axis)


def _before(case: Case, outs: tuple[Tensor, ...], cut: int) -> list[Tensor]:
    return [
        out.narrow(case.time[name], 0, cut) if name in case.time else out
        for name, out in zip(case.outputs, outs, strict=True)
    ]
