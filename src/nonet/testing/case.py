"""What the conformance suite knows of an op: how to call it, what must hold, and faults to reject."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nonet.registry import Method

Function = Callable[..., Any]
Arguments = dict[str, Any]


@dataclass(frozen=True, eq=False)  # so that what is computed for a case can be kept by it
class Case:
    """One way to call an op of a method.

    Attributes:
        op: the op's name in the registry.
        label: what is particular about this way of calling it.
        make: ``(length, generator) -> keyword arguments``; floating tensors in float64.
        outputs: names of what the op returns, in order.
        time: axis of time of every argument and output that has one.
        gradients: names of arguments whose gradients are compared.
        batch: names of arguments whose first axis is the batch.
        causal: an output must not depend on later times.
        split: ``(function, arguments, place) -> outputs`` computed in two calls, or None.
        lengths: lengths to call with: one, an odd one, one longer than a block.
        faults: planted faults, each a wrapper that turns a right function into a wrong one.
    """

    op: str
    label: str
    make: Callable[[int, torch.Generator], Arguments]
    outputs: tuple[str, ...]
    time: Mapping[str, int]
    gradients: tuple[str, ...] = ()
    batch: tuple[str, ...] = ()
    causal: bool = False
    split: Callable[[Function, Arguments, int], tuple[Tensor, ...]] | None = None
    lengths: tuple[int, ...] = (1, 7, 96)
    faults: Mapping[str, Callable[[Function], Function]] = field(default_factory=dict)


def cases(method: Method) -> tuple[Case, ...]:
    """Returns the cases of a method's ops, from the module of its name in this package."""
    if not method.ops:
        return ()
    return importlib.import_module(f"nonet.testing.{method.name}").CASES


def call(function: Function, arguments: Arguments) -> tuple[Tensor, ...]:
    """Calls a function and returns its outputs as a tuple, whatever their number."""
    out = function(**arguments)
    return out if isinstance(out, tuple) else (out,)


def cast(arguments: Arguments, dtype: torch.dtype) -> Arguments:
    """Returns the arguments with every floating tensor in ``dtype``."""
    return {
        name: value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }


def changed(arguments: Arguments, **new: Any) -> Arguments:
    """Returns the arguments with some of them replaced; for writing faults and splits."""
    return {**arguments, **new}


def spoil(change: Callable[[Arguments], Arguments]) -> Callable[[Function], Function]:
    """Returns the fault of calling a function with ``change(arguments)`` in place of its arguments."""
    return lambda function: lambda **arguments: function(**change(arguments))


def spoil_output(change: Callable[[Tensor], Tensor], place: int = 0) -> Callable[[Function], Function]:
    """Returns the fault of changing one output of a function, by default the first."""

    def fault(function: Function) -> Function:
        def wrong(**arguments: Any) -> tuple[Tensor, ...]:
            outs = list(call(function, arguments))
            outs[place] = change(outs[place])
            return tuple(outs)

        return wrong

    return fault


def ends_of_sequences(length: int) -> Tensor:
    """Returns the ``cu_seqlens`` of a row of up to four sequences, the last of them a single token."""
    return torch.tensor(sorted({0, length // 3, length // 2, length - 1, length}), dtype=torch.int32)


def run_on(function: Function) -> Function:
    """The fault of letting the sequences of a packed row continue one another."""

    def wrong(**arguments: Any) -> tuple[Tensor, ...]:
        _, last = call(function, arguments)
        first = arguments["initial_state"][:1]
        out, _ = call(function, changed(arguments, cu_seqlens=None, initial_state=first))
        return out, last

    return wrong
