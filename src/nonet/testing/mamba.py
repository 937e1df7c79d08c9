"""Cases of the recurrence, of the convolution, and of a whole step."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nonet.testing.case import (
    Arguments,
    Case,
    Function,
    call,
    changed,
    ends_of_sequences,
    run_on,
    spoil,
    spoil_output,
)

_BATCH, _TAPS = 2, 4
_LENGTHS = (1, 7, 96, 131)


def _normal(generator: torch.Generator) -> Callable[..., Tensor]:
    return partial(torch.randn, generator=generator, dtype=torch.float64)


def _plain(length: int, generator: torch.Generator) -> Arguments:
    normal = _normal(generator)
    channels, states = 229, 16  # enough of them that 96 tokens are several blocks
    return {
        "u": normal(_BATCH, channels, length),
        "delta": torch.nn.functional.softplus(normal(_BATCH, channels, length) - 2),
        "A": -torch.exp(normal(channels, states)),
        "B": normal(_BATCH, states, length),
        "C": normal(_BATCH, states, length),
        "return_last_state": True,
    }


def _complete(states: int, packed: bool = False) -> Callable[[int, torch.Generator], Arguments]:
    def make(length: int, generator: torch.Generator) -> Arguments:
        normal, channels = _normal(generator), 37
        ends = ends_of_sequences(length) if packed else None
        rows, kept = (_BATCH, _BATCH) if ends is None else (1, len(ends) - 1)
        delta = normal(rows, channels, length)
        delta[..., 2::9] = -torch.inf  # a step of zero, which padding asks for
        return {
            "u": normal(rows, channels, length),
            "delta": delta,
            "A": -torch.exp(normal(channels, states)),
            "B": normal(rows, states, length),
            "C": normal(rows, states, length),
            "D": normal(channels),
            "z": normal(rows, channels, length),
            "delta_bias": normal(channels) - 2,
            "delta_softplus": True,
            "initial_state": normal(kept, channels, states),
            "return_last_state": True,
            "cu_seqlens": ends,
        }

    return make


def _conv(taps: int, packed: bool = False, **options: Any) -> Callable[[int, torch.Generator], Arguments]:
    def make(length: int, generator: torch.Generator) -> Arguments:
        normal, channels = _normal(generator), 37
        ends = ends_of_sequences(length) if packed else None
        rows, kept = (_BATCH, _BATCH) if ends is None else (1, len(ends) - 1)
        return {
            "x": normal(rows, channels, length),
            "weight": normal(channels, taps),
            "bias": normal(channels),
            "initial_state": normal(kept, channels, taps - 1),
            "return_last_state": True,
            "cu_seqlens": ends,
            **options,
        }

    return make


def _step(states: int, complete: bool) -> Callable[[int, torch.Generator], Arguments]:
    """One token in each of three rows; everything that may be left out is there or is not."""

    def make(_: int, generator: torch.Generator) -> Arguments:
        normal, rows, width, channels, rank = _normal(generator), 3, 20, 37, 3
        arguments = {
            "x": normal(rows, width),
            "conv_state": normal(rows, channels, _TAPS if complete else _TAPS - 1),
            "ssm_state": normal(rows, channels, states),
            "in_proj": normal(2 * channels, width) * width**-0.5,
            "conv_weight": normal(channels, _TAPS),
            "conv_bias": None,
            "x_proj": normal(rank + 2 * states, channels) * channels**-0.5,
            "dt_proj": normal(channels, rank) * rank**-0.5,
            "dt_bias": None,
            "A_log": normal(channels, states),
            "D": normal(channels),
            "out_proj": normal(width, channels) * channels**-0.5,
        }
        biases = {
            "conv_bias": normal(channels),
            "dt_bias": normal(channels) - 2,
            "in_bias": normal(2 * channels),
            "out_bias": normal(width),
            "norm_eps": 0.01,
        }
        return {**arguments, **biases} if complete else arguments

    return make


def _split(*names: str) -> Callable[[Function, Arguments, int], tuple[Tensor, ...]]:
    """Calls twice, the second time with the last state of the first."""

    def split(function: Function, a: Arguments, cut: int) -> tuple[Tensor, ...]:
        out, state = call(function, changed(a, **{n: a[n][..., :cut] for n in names}))
        rest = changed(a, **{n: a[n][..., cut:] for n in names}, initial_state=state)
        more, state = call(function, rest)
        return torch.cat([out, more], dim=-1), state

    return split


def _old_state(function: Function) -> Function:
    """The fault of returning the state before the last token."""

    def wrong(**a: Any) -> tuple[Tensor, Tensor]:
        out, _ = call(function, a)
        names = [n for n in ("u", "delta", "B", "C", "z", "x") if a.get(n) is not None]
        *_, state = call(function, changed(a, **{n: a[n][..., :-1] for n in names}))
        return out, state

    return wrong


def _later(name: str) -> Callable[[Function], Function]:
    return spoil(lambda a: changed(a, **{name: a[name].roll(1, -1)}))


def _without(name: str) -> Callable[[Function], Function]:
    return spoil(lambda a: changed(a, **{name: None}))


def _scaled(name: str, factor: float) -> Callable[[Function], Function]:
    return spoil(lambda a: changed(a, **{name: a[name] * factor}))


def _other(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Function], Function]:
    return spoil(lambda a: changed(a, **{name: change(a[name])}))


def _state_as_it_was(function: Function) -> Function:
    def wrong(**a: Any) -> tuple[Tensor, ...]:
        out, conv, _ = call(function, a)
        return out, conv, a["ssm_state"]

    return wrong


def _B_and_C_swapped(x_proj: Tensor) -> Tensor:  # noqa: N802
    r, B, C = x_proj.split((3, (len(x_proj) - 3) // 2, (len(x_proj) - 3) // 2))
    return torch.cat([r, C, B])


_TIME = dict.fromkeys(("u", "delta", "B", "C", "z", "x", "out"), 2)
_DROPPED_TAIL = spoil_output(lambda out: out * (torch.arange(out.shape[2]) < 95))
_ROW_OF_SEQUENCES = {
    "sequences run on": run_on,
    "forgotten initial states": _without("initial_state"),
    "states of other sequences": _other("initial_state", lambda state: state.flip(0)),
    "last states of other sequences": spoil_output(lambda last: last.flip(0), 1),
}
_STEP: dict[str, Any] = {
    "op": "mamba_step",
    "outputs": ("out", "conv_state", "ssm_state"),
    "time": {},
    "batch": ("x", "conv_state", "ssm_state"),
    "lengths": (1,),
}
_WEIGHTS = ("in_proj", "conv_weight", "x_proj", "dt_proj", "A_log", "D", "out_proj")

CASES = (
    Case(
        op="selective_scan",
        label="steps as given",
        make=_plain,
        outputs=("out", "last"),
        time=_TIME,
        gradients=("u", "delta", "A", "B", "C"),
        batch=("u", "delta", "B", "C"),
        causal=True,
        lengths=_LENGTHS,
        split=_split("u", "delta", "B", "C"),
        faults={
            "dropped tail": _DROPPED_TAIL,
            "growth in place of decay": _scaled("A", -1),
            "decay to the base two": _scaled("A", math.log(2)),
            "B and C swapped": spoil(lambda a: changed(a, B=a["C"], C=a["B"])),
            "softplus not asked for": spoil(lambda a: changed(a, delta_softplus=True)),
            "step of the token before": _later("delta"),
            "state before the last token": _old_state,
        },
    ),
    Case(
        op="selective_scan",
        label="softplus, skip, gate, state, steps of zero",
        make=_complete(states=6),
        outputs=("out", "last"),
        time=_TIME,
        gradients=("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"),
        batch=("u", "delta", "B", "C", "z", "initial_state"),
        causal=True,
        lengths=_LENGTHS,
        split=_split("u", "delta", "B", "C", "z"),
        faults={
            "forgotten initial state": _without("initial_state"),
            "forgotten skip": _without("D"),
            "forgotten gate": _without("z"),
            "forgotten bias of the step": _without("delta_bias"),
            "bias added twice": _scaled("delta_bias", 2),
            "gate of the token before": _later("z"),
            "states of another channel": spoil(lambda a: changed(a, A=a["A"].roll(1, 0))),
        },
    ),
    Case(
        op="selective_scan",
        label="sequences in one row",
        make=_complete(states=16, packed=True),
        outputs=("out", "last"),
        time=_TIME,
        gradients=("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state"),
        causal=True,
        lengths=_LENGTHS,
        faults=_ROW_OF_SEQUENCES,
    ),
    Case(
        op="causal_conv1d",
        label="four taps, SiLU",
        make=_conv(4, activation="silu"),
        outputs=("out", "last"),
        time=_TIME,
        gradients=("x", "weight", "bias", "initial_state"),
        batch=("x", "initial_state"),
        causal=True,
        lengths=_LENGTHS,
        split=_split("x"),
        faults={
            "dropped tail": _DROPPED_TAIL,
            "shifted by one": _later("x"),
            "taps reversed": spoil(lambda a: changed(a, weight=a["weight"].flip(1))),
            "forgotten bias": _without("bias"),
            "forgotten activation": _without("activation"),
            "forgotten initial state": _without("initial_state"),
            "state before the last token": _old_state,
        },
    ),
    Case(
        op="causal_conv1d",
        label="two taps, linear, no state",
        make=_conv(2, bias=None, initial_state=None),
        outputs=("out", "last"),
        time=_TIME,
        gradients=("x", "weight"),
        batch=("x",),
        causal=True,
        lengths=_LENGTHS,
        split=_split("x"),
        faults={
            "sees the future": spoil(lambda a: changed(a, x=a["x"].roll(-1, -1))),
            "activation not asked for": spoil(lambda a: changed(a, activation="silu")),
        },
    ),
    Case(
        op="causal_conv1d",
        label="sequences in one row",
        make=_conv(_TAPS, packed=True, activation="silu"),
        outputs=("out", "last"),
        time=_TIME,
        gradients=("x", "weight", "bias", "initial_state"),
        causal=True,
        lengths=_LENGTHS,
        faults=_ROW_OF_SEQUENCES,
    ),
    Case(
        label="bare",
        make=_step(states=6, complete=False),
        gradients=("x", "conv_state", "ssm_state", *_WEIGHTS),
        faults={
            "norms not asked for": spoil(lambda a: changed(a, norm_eps=1e-6)),
            "gate and input swapped": _other("in_proj", lambda w: w.roll(37, 0)),
            "taps reversed": _other("conv_weight", lambda w: w.flip(1)),
            "oldest input forgotten": _other("conv_state", lambda c: c * (torch.arange(c.shape[2]) > 0)),
            "B and C swapped": _other("x_proj", _B_and_C_swapped),
            "rates without their exponential": _other("A_log", lambda a: a.abs().log()),
            "forgotten skip": _scaled("D", 0),
            "state of another row": _other("ssm_state", lambda state: state.flip(0)),
            "state as it was": _state_as_it_was,
            "inputs not moved": spoil_output(lambda conv: conv.roll(1, 2), 1),
        },
        **_STEP,
    ),
    Case(
        label="norms and biases",
        make=_step(states=16, complete=True),
        gradients=(
            "x",
            "conv_state",
            "ssm_state",
            *_WEIGHTS,
            "conv_bias",
            "dt_bias",
            "in_bias",
            "out_bias",
        ),
        faults={
            "forgotten norms": _without("norm_eps"),
            "another epsilon": _scaled("norm_eps", 0.1),
            "forgotten bias of the convolution": _without("conv_bias"),
            "forgotten bias of the step": _without("dt_bias"),
            "bias added twice": _scaled("dt_bias", 2),
            "forgotten bias of the input": _without("in_bias"),
            "forgotten bias of the output": _without("out_bias"),
            "inputs taken from the start": _other("conv_state", lambda c: c.roll(1, 2)),
        },
        **_STEP,
    ),
)
