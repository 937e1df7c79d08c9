"""The conformance checks: what every implementation of every op is held to.

A check takes a case, the function under test and the oracle, both called by keyword, and raises
AssertionError when the function is wrong. Results in parts, such as a row alone or the past of another
future, are put together and held as a whole: the error of a part is luck.

The function may be the oracle itself. Nothing is held to itself, so the budget then leaves out the oracle's
plain error: its results may differ from float64 by no more than the roundings of its operations explain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nonet.testing.budget import assert_within_budget
from nonet.testing.case import Arguments, Case, Function, call
from nonet.testing.expected import Expected, arguments_of, expected, results_of

Check = Callable[[Case, Function, Function], None]


def outputs_and_gradients(case: Case, function: Function, oracle: Function) -> None:
    """Outputs and all gradients are within the budget at every length, in float32 and bfloat16."""
    for dtype in (torch.float32, torch.bfloat16):
        for length in case.lengths:
            right = expected(case, function, oracle, length, dtype)
            _hold(results_of(case, function, arguments_of(case, length, dtype), right.weights), right)


def any_strides(case: Case, function: Function, oracle: Function) -> None:
    """Arguments may lie in memory in any order."""
    arguments, right = _longest(case, function, oracle)
    for name, value in arguments.items():
        if isinstance(value, Tensor) and value.dim() > 1:
            arguments[name] = value.transpose(-1, -2).contiguous().transpose(-1, -2)
    _hold(results_of(case, function, arguments, right.weights), right, "of other strides")


def the_past_stays(case: Case, function: Function, oracle: Function) -> None:
    """Changing the future of a causal op leaves its past as it was."""
    if not case.causal:
        return
    for length in case.lengths[1:]:
        arguments, right = arguments_of(case, length), expected(case, function, oracle, length)
        whole = call(function, arguments)
        for cut in {1, length // 2, length - 1}:
            other = {n: _rewrite(v, case.time[n], cut) if n in case.time else v for n, v in arguments.items()}
            past = {
                name: torch.cat([o.narrow(t, 0, cut), w.narrow(t, cut, length - cut)], dim=t)
                for name, o, w in zip(case.outputs, call(function, other), whole, strict=True)
                if (t := case.time.get(name)) is not None
            }
            _hold(past, right, f"with another future from {cut} on")


def parts_make_the_whole(case: Case, function: Function, oracle: Function) -> None:
    """Two calls, the second continuing from the first, give what one call gives."""
    if case.split is None:
        return
    for length in case.lengths[1:]:
        arguments, right = arguments_of(case, length), expected(case, function, oracle, length)
        for cut in {1, length // 2, length - 1}:
            parts = case.split(function, arguments, cut)
            _hold(_named(case, parts), right, f"in parts of {cut} and {length - cut}")


def rows_are_alone(case: Case, function: Function, oracle: Function) -> None:
    """A row of a batch does not depend on the other rows."""
    if not case.batch:
        return
    arguments, right = _longest(case, function, oracle)
    rows = []
    for row in range(len(arguments[case.batch[0]])):
        mine = {n: arguments[n][row : row + 1] for n in case.batch if arguments.get(n) is not None}
        rows.append(call(function, {**arguments, **mine}))
    _hold(_named(case, [torch.cat(parts) for parts in zip(*rows, strict=True)]), right, "row by row")


def same_again(case: Case, function: Function, oracle: Function) -> None:
    """A second call gives the same bits, and does not change its arguments."""
    arguments = arguments_of(case, case.lengths[-1])
    before = {n: v.clone() for n, v in arguments.items() if isinstance(v, Tensor)}
    first, second = call(function, arguments), call(function, arguments)
    for name, a, b in zip(case.outputs, first, second, strict=True):
        assert torch.equal(a, b), f"{name} differs between two calls"
    for name, value in before.items():
        assert torch.equal(value, arguments[name]), f"{name} was changed by the call"


def poisoned_memory(case: Case, function: Function, oracle: Function) -> None:
    """Memory that was not written is not read: fresh tensors are filled with NaN."""
    for length in case.lengths:
        arguments, right = arguments_of(case, length), expected(case, function, oracle, length)
        mode = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)  # this fills torch.empty with NaN
        try:
            found = results_of(case, function, arguments, right.weights)
        finally:
            torch.use_deterministic_algorithms(mode)
        _hold(found, right, "in poisoned memory")


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


def _hold(found: dict[str, Tensor], right: Expected, how: str = "") -> None:
    for name, actual in found.items():
        what = f"{right.label}, {name} {how}".rstrip()
        assert_within_budget(actual, right.plain[name], right.gold[name], what)


def _longest(case: Case, function: Function, oracle: Function) -> tuple[Arguments, Expected]:
    length = case.lengths[-1]
    return arguments_of(case, length), expected(case, function, oracle, length)


def _named(case: Case, outs: Sequence[Tensor]) -> dict[str, Tensor]:
    return dict(zip(case.outputs, outs, strict=True))


def _rewrite(value: Tensor | None, axis: int, cut: int) -> Tensor | None:
    """Returns a copy whose entries from ``cut`` on are others of the same kind."""
    if value is None:
        return None
    head, tail = value.narrow(axis, 0, cut), value.narrow(axis, cut, value.shape[axis] - cut)
    return torch.cat([head, tail.flip(axis) * 0.5], dim=axis)
