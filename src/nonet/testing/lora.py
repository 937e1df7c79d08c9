"""Cases of the low-rank terms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nonet.testing.case import Arguments, Case, Function, call, changed, spoil, spoil_output

WIDE, OUT, RANK = 24, 18, 5
RANKS = (3, 5, 1)  # of the adapters of a group, filled up with zeros to the largest
Make = Callable[[int, torch.Generator], Arguments]


def _linear(bias: bool, dropout: bool) -> Make:
    def make(length: int, generator: torch.Generator) -> Arguments:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        kept = torch.rand(2, length, WIDE, generator=generator) < 0.7
        return {
            "x": normal(2, length, WIDE),
            "weight": normal(OUT, WIDE) / 5,
            "bias": normal(OUT) if bias else None,
            "a": normal(RANK, WIDE) / 5,
            "b": normal(OUT, RANK) / 2,
            "scale": 1.7,
            "keep": kept if dropout else None,
        }

    return make


def _grouped(based: bool, own: bool = False) -> Make:
    def make(length: int, generator: torch.Generator) -> Arguments:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        ranks = [*RANKS, 2, 4] if own else RANKS
        real = torch.arange(max(ranks)) < torch.tensor(ranks)[:, None]
        return {
            "x": normal(5, length, WIDE),
            "a": normal(len(ranks), max(ranks), WIDE) / 5 * real[:, :, None],
            "b": normal(len(ranks), OUT, max(ranks)) / 2 * real[:, None],
            "scales": torch.tensor([1.7, 0.6, 3.0, 0.0, 1.1][: len(ranks)]),
            "rows": None if own else torch.tensor([1, 0, -1, 2, 1]),
            "base": normal(5, length, OUT) if based else None,
        }

    return make


def _split(*timed: str) -> Callable[[Function, Arguments, int], tuple[Tensor, ...]]:
    """A token's output depends on that token alone."""

    def split(function: Function, a: Arguments, cut: int) -> tuple[Tensor, ...]:
        parts = []
        for piece in (slice(None, cut), slice(cut, None)):
            mine = {n: a[n][:, piece] for n in timed if a[n] is not None}
            parts.append(call(function, changed(a, **mine))[0])
        return (torch.cat(parts, dim=1),)

    return split


_LINEAR: dict[str, Any] = {
    "op": "lora_linear",
    "outputs": ("out",),
    "time": {"x": 1, "out": 1},
    "batch": ("x", "keep"),
    "causal": True,
    "split": _split("x", "keep"),
}
_LINEAR_FAULTS = {
    "no scale": spoil(lambda a: changed(a, scale=1.0)),
    "scale of another rank": spoil(lambda a: changed(a, scale=a["scale"] * RANK**0.5)),
    "no low-rank term": spoil(lambda a: changed(a, b=torch.zeros_like(a["b"]))),
    "a dropped row of A": spoil(lambda a: changed(a, a=a["a"] * (torch.arange(RANK) > 0)[:, None])),
    "rows of A in another order": spoil(lambda a: changed(a, a=a["a"].flip(0))),
    "columns of B in another order": spoil(lambda a: changed(a, b=a["b"].flip(1))),
    "the last output is the weight's alone": spoil(
        lambda a: changed(a, b=a["b"] * (torch.arange(OUT) < OUT - 1)[:, None])
    ),
    "dropped tail": spoil_output(lambda out: out * (torch.arange(out.shape[1])[:, None] < 95)),
}
_GROUPED: dict[str, Any] = {
    "op": "grouped_lora",
    "outputs": ("out",),
    "time": {"x": 1, "base": 1, "out": 1},
    "gradients": ("x", "a", "b", "base"),
    "batch": ("x", "rows", "base"),
    "causal": True,
    "split": _split("x", "base"),
}
_STACK_FAULTS = {
    "scales of other adapters": spoil(lambda a: changed(a, scales=a["scales"].flip(0))),
    "the rank of the smallest": spoil(
        lambda a: changed(a, a=a["a"] * (torch.arange(max(RANKS)) < min(RANKS))[:, None])
    ),
}
_GROUPED_FAULTS = {
    **_STACK_FAULTS,
    "adapters of other rows": spoil(lambda a: changed(a, rows=a["rows"].flip(0))),
    "rows of none have the last adapter": spoil(lambda a: changed(a, rows=a["rows"] % len(RANKS))),
    "rows of none have the first adapter": spoil(lambda a: changed(a, rows=a["rows"].clamp(min=0))),
}

CASES = (
    Case(
        label="a frozen weight",
        make=_linear(bias=False, dropout=False),
        gradients=("x", "a", "b"),
        faults=_LINEAR_FAULTS,
        **_LINEAR,
    ),
    Case(
        label="all of it trained",
        make=_linear(bias=True, dropout=False),
        gradients=("x", "weight", "bias", "a", "b"),
        faults={
            **_LINEAR_FAULTS,
            "no bias": spoil(lambda a: changed(a, bias=None)),
            "the bias is scaled too": spoil(lambda a: changed(a, bias=a["bias"] * a["scale"])),
        },
        **_LINEAR,
    ),
    Case(
        label="dropout",
        make=_linear(bias=True, dropout=True),
        gradients=("x", "weight", "bias", "a", "b"),
        faults={
            "nothing is dropped": spoil(lambda a: changed(a, keep=None)),
            "the others are dropped": spoil(lambda a: changed(a, keep=~a["keep"])),
            "the weight's inputs are dropped too": spoil(lambda a: changed(a, x=a["x"] * a["keep"])),
            "the mask of another token": spoil(lambda a: changed(a, keep=a["keep"].roll(1, 1))),
        },
        **_LINEAR,
    ),
    Case(label="terms alone", make=_grouped(based=False), faults=_GROUPED_FAULTS, **_GROUPED),
    Case(
        label="on a base",
        make=_grouped(based=True),
        faults={**_GROUPED_FAULTS, "no base": spoil(lambda a: changed(a, base=None))},
        **_GROUPED,
    ),
    Case(
        label="factors of the rows",
        make=_grouped(based=True, own=True),
        faults={
            **_STACK_FAULTS,
            "factors of other rows": spoil(lambda a: changed(a, a=a["a"].flip(0), b=a["b"].flip(0))),
        },
        **{**_GROUPED, "batch": ("x", "a", "b", "scales", "base")},
    ),
)
