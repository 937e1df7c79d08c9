"""Whether what a contender computes is right, and how far it is from the oracle in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from nonet.bench.peers import Contender
from nonet.testing.budget import assert_within_budget

Outcome = dict[str, Tensor]  # "out", and gradients by other names


def judge(
    contenders: Sequence[Contender], outcome: Callable[[Contender], Outcome], plain: Outcome, gold: Outcome
) -> dict[str, Any]:
    """Holds what contenders compute to the oracle.

    Args:
        contenders: who computes.
        outcome: computes.
        plain: what plain PyTorch gives in the dtype under test.
        gold: what the oracle gives in float64.

    Returns:
        ``plain``, the error of plain PyTorch, and under ``found`` for each name its ``error`` and its
        ``failure``, or None in their place. An error is the largest difference beside the largest value, the
        worst of output and gradients. A peer fails when it raises; ours also when it errs beyond the budget.
    """
    found = {}
    for contender in contenders:
        error = failure = None
        try:
            actual = outcome(contender)
            error = _error(actual, gold)
            if contender.package is None:
                _assert_right(actual, plain, gold, contender.name)
        except AssertionError as wrong:
            failure = f"wrong: {wrong}"
        except Exception as raised:  # noqa: BLE001  (other people's code may raise anything)
            failure = describe(raised)
        found[contender.name] = {"error": error, "failure": failure}
    return {"plain": _error(plain, gold), "found": found}


def describe(raised: Exception) -> str:
    """Returns an exception as one line."""
    return f"{type(raised).__name__}: {' '.join(str(raised).split()) or 'without a message'}"


def _assert_right(actual: Outcome, plain: Outcome, gold: Outcome, name: str) -> None:
    # A gradient that cancels to nothing is as exact as the others are large.
    scale = max((g.abs().max().item() for key, g in gold.items() if key != "out"), default=0.0)
    for key, g in gold.items():
        assert_within_budget(
            actual[key], plain[key], g, f"{name} {key}", scale=scale if key != "out" else 0.0
        )


def _error(actual: Outcome, gold: Outcome) -> float:
    return max(
        ((actual[key].double() - g).abs().max() / g.abs().max().clamp(min=1e-30)).item()
        for key, g in gold.items()
    )
