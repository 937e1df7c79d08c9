"""Cases of the product of a matrix with a few vectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nonet.testing.case import Arguments, Case, Function, call, changed, spoil, spoil_output


def _rows(inputs: int, outputs: int, bias: bool) -> Callable[[int, torch.Generator], Arguments]:
    """Twice so many rows, and values that no bfloat16 holds."""

    def make(length: int, generator: torch.Generator) -> Arguments:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        made = {"x": normal(2, length, inputs), "weight": normal(outputs, inputs) / inputs**0.5}
        return {**made, "bias": normal(outputs)} if bias else made

    return make


def _split(function: Function, a: Arguments, cut: int) -> tuple[Tensor, ...]:
    parts = [call(function, changed(a, x=x)) for x in (a["x"][:, :cut], a["x"][:, cut:])]
    return (torch.cat([out for (out,) in parts], dim=1),)


def _weight(change: Callable[[Tensor], Tensor]) -> Callable[[Function], Function]:
    return spoil(lambda a: changed(a, weight=change(a["weight"])))


def _bias(change: Callable[[Tensor], Tensor | None]) -> Callable[[Function], Function]:
    return spoil(lambda a: changed(a, bias=change(a["bias"])))


_CASE: dict[str, Any] = {
    "op": "linear_rows",
    "outputs": ("out",),
    "time": {"x": 1, "out": 1},
    "batch": ("x",),
    "causal": True,  # no row sees another
    "lengths": (1, 3, 9),
    "split": _split,
}

CASES = (
    Case(
        label="a bias, odd sizes",
        make=_rows(131, 45, bias=True),
        gradients=("x", "weight", "bias"),
        faults={
            "forgotten bias": _bias(lambda bias: None),
            "bias added twice": _bias(lambda bias: 2 * bias),
            "bias of the output before": _bias(lambda bias: bias.roll(1)),
            "last input forgotten": _weight(lambda w: w * (torch.arange(131) < 130)),
            "last output forgotten": spoil_output(lambda out: out * (torch.arange(45) < 44)),
            "rows swapped": spoil_output(lambda out: out.flip(1)),
            "row of the batch swapped": spoil_output(lambda out: out.flip(0)),
        },
        **_CASE,
    ),
    Case(
        label="whole vectors, square",
        make=_rows(192, 192, bias=False),
        gradients=("x", "weight"),
        faults={
            "transposed": _weight(lambda w: w.mT),
            "inputs shifted": _weight(lambda w: w.roll(1, 1)),
            "outputs shifted": spoil_output(lambda out: out.roll(1, 2)),
            "weight in bfloat16 where that is not exact": _weight(lambda w: w.bfloat16().to(w.dtype)),
            "rows in bfloat16": spoil(lambda a: changed(a, x=a["x"].bfloat16().to(a["x"].dtype))),
        },
        **_CASE,
    ),
    Case(
        label="one input, one output",
        make=_rows(1, 1, bias=True),
        gradients=("x", "weight", "bias"),
        faults={"forgotten weight": _weight(torch.ones_like)},
        **_CASE,
    ),
)
