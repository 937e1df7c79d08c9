"""What the oracle gives for a case: the exact results, and plain ones to measure the budget by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from nonet.testing.case import Arguments, Case, Function, call, cast
from nonet.testing.rounding import rounded


@dataclass(frozen=True)
class Expected:
    """What a call must give.

    Attributes:
        label: the call, for messages.
        weights: of the outputs, in the sum that is differentiated.
        gold: outputs and gradients by name, in float64.
        plain: several plain results for each of them, on a first axis more.
    """

    label: str
    weights: list[Tensor]
    gold: dict[str, Tensor]
    plain: dict[str, Tensor]


def expected(
    case: Case, function: Function, oracle: Function, length: int, dtype: torch.dtype = torch.float32
) -> Expected:
    """Returns what ``function`` must give, with the oracle's own plain error only where it is another."""
    weights, gold, drawn, eager = _computed(case, oracle, length, dtype)
    plain = drawn
    if function is not oracle:
        plain = {name: torch.cat([drawn[name], eager[name][None].double()]) for name in gold}
    label = f"{case.op} ({case.label}) of {length} in {dtype}"
    return Expected(label, weights, gold, plain)


def arguments_of(case: Case, length: int, dtype: torch.dtype = torch.float32) -> Arguments:
    """Returns a case's arguments, the same in every call."""
    return cast(case.make(length, torch.Generator().manual_seed(length)), dtype)


def results_of(
    case: Case, function: Function, arguments: Arguments, weights: list[Tensor]
) -> dict[str, Tensor]:
    """Returns the outputs, and the gradients of their weighted sum, by name."""
    names = [n for n in case.gradients if arguments.get(n) is not None]
    leaves = {n: arguments[n].detach().clone().requires_grad_() for n in names}
    outs = call(function, {**arguments, **leaves})
    found = {name: out.detach() for name, out in zip(case.outputs, outs, strict=True)}
    if not names:
        return found
    summed = [(out, weight.to(out)) for out, weight in zip(outs, weights, strict=True) if out.requires_grad]
    total, of = zip(*summed, strict=True)
    grads = torch.autograd.grad(total, [*leaves.values()], of, materialize_grads=True)
    return found | {f"gradient of {name}": grad for name, grad in zip(names, grads, strict=True)}


@cache
def _computed(
    case: Case, oracle: Function, length: int, dtype: torch.dtype
) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Returns the weights, and what the oracle gives in float64, in draws of ``dtype``, and in ``dtype``."""
    arguments = arguments_of(case, length, dtype)
    exact = cast(arguments, torch.float64)
    weights = _weights(call(oracle, exact))
    eager = results_of(case, oracle, arguments, weights)
    gold, drawn = rounded(lambda: [*results_of(case, oracle, exact, weights).values()], dtype)
    return weights, dict(zip(eager, gold, strict=True)), dict(zip(eager, drawn, strict=True)), eager


def _weights(outs: Iterable[Tensor]) -> list[Tensor]:
    """Returns weights that give the outputs' sum positive terms, and that every dtype holds.

    Terms of either sign may cancel by luck, in the gradients too, which hides how much is rounded.
    """
    generator = torch.Generator().manual_seed(0)
    sizes = [(out, torch.randn(out.shape, generator=generator).abs().bfloat16()) for out in outs]
    return [torch.where(out < 0, -size, size) for out, size in sizes]
