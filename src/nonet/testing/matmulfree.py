"""Cases of the gated recurrence and of products with packed ternary weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nonet.matmulfree.packed import pack_ternary
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

_BATCH, _CHANNELS = 2, 37
_IN, _OUT = 45, 20  # a width that leaves three places of the last byte empty


def _normal(generator: torch.Generator) -> Callable[..., Tensor]:
    return partial(torch.randn, generator=generator, dtype=torch.float64)


def _gates(length: int, generator: torch.Generator) -> Arguments:
    normal = _normal(generator)
    return {
        "i": normal(_BATCH, _CHANNELS, length),
        "f": torch.sigmoid(2 * normal(_BATCH, _CHANNELS, length) + 1),
        "initial_state": normal(_BATCH, _CHANNELS),
        "return_last_state": True,
    }


def _any_gates(length: int, generator: torch.Generator) -> Arguments:
    f = torch.randn(_BATCH, _CHANNELS, length, generator=generator, dtype=torch.float64)
    f[..., 1::7], f[..., 3::7] = 0.0, 1.0
    return {"i": _gates(length, generator)["i"], "f": f}


def _logits(packed: bool, bounded: bool) -> Callable[[int, torch.Generator], Arguments]:
    def make(length: int, generator: torch.Generator) -> Arguments:
        normal = _normal(generator)
        ends = ends_of_sequences(length) if packed else None
        rows, kept = (_BATCH, _BATCH) if ends is None else (1, len(ends) - 1)
        f = 2 * normal(rows, _CHANNELS, length) + 1
        f[..., 2::9] = torch.inf  # keeps all and takes in nothing, which padding asks for
        return {
            "i": normal(rows, _CHANNELS, length),
            "f": f,
            "initial_state": normal(kept, _CHANNELS),
            "return_last_state": True,
            "from_logits": True,
            "lower_bound": torch.sigmoid(normal(_CHANNELS)) if bounded else None,
            "cu_seqlens": ends,
        }

    return make


def _gates_of(a: Arguments, silu: bool = True, bound: bool = True) -> Arguments:
    """Makes gates of logits by hand, with or without the SiLU, and with or without the bound on i."""
    free, least = torch.sigmoid(a["f"]), a["lower_bound"][:, None]
    f = least + (1 - least) * free
    i = torch.nn.functional.silu(a["i"]) if silu else a["i"]
    return changed(a, i=i * (1 - (f if bound else free)), f=f, from_logits=False, lower_bound=None)


def _split_scan(function: Function, a: Arguments, cut: int) -> tuple[Tensor, ...]:
    """Calls twice, the second time with the last state of the first."""
    first = changed(a, i=a["i"][..., :cut], f=a["f"][..., :cut], return_last_state=True)
    h, state = call(function, first)
    rest = changed(first, i=a["i"][..., cut:], f=a["f"][..., cut:], initial_state=state)
    more, last = call(function, rest)
    return torch.cat([h, more], dim=-1), last


def _forgets_at_a_seam(function: Function) -> Function:
    """The fault of starting every block from zero."""

    def wrong(**a: Any) -> tuple[Tensor, ...]:
        seam = a["i"].shape[2] // 2
        f = a["f"] * (torch.arange(a["i"].shape[2]) != seam)
        return call(function, changed(a, f=f))

    return wrong


def _tokens(norm: bool) -> Callable[[int, torch.Generator], Arguments]:
    """Tokens that each fall on 8 bits: whole steps up to 127 and a quarter more or less.

    So no entry is near the middle of two steps, where a rounding of the last bit would decide the result,
    and every entry is a number that bfloat16 holds. Tokens differ in scale by powers of two.
    """

    def make(length: int, generator: torch.Generator) -> Arguments:
        def integers(low: int, high: int, *shape: int) -> Tensor:
            return torch.randint(low, high + 1, shape, generator=generator).double()

        shape = (_BATCH, length, _IN)
        steps = integers(-126, 126, *shape)
        steps += 0.25 * integers(-1, 1, *shape) * (steps.abs() < 63)
        largest = integers(0, _IN - 1, _BATCH, length, 1).long()
        steps.scatter_(2, largest, 127.0)
        weight = torch.randn(_OUT, _IN, generator=generator, dtype=torch.float64)
        norm_weight = 2.0 ** integers(-1, 1, _IN)
        return {
            "x": steps / (norm_weight if norm else 1) * 2.0 ** integers(-12, 0, _BATCH, length, 1),
            "packed": pack_ternary(weight),
            "bias": torch.randn(_OUT, generator=generator, dtype=torch.float64),
            "norm_weight": norm_weight if norm else None,
        }

    return make


def _split_tokens(function: Function, a: Arguments, cut: int) -> tuple[Tensor, ...]:
    parts = (call(function, changed(a, x=part))[0] for part in (a["x"][:, :cut], a["x"][:, cut:]))
    return (torch.cat(list(parts), dim=1),)


def _one_scale_for_all(a: Arguments) -> Arguments:
    step = a["x"].abs().max() / 127
    return changed(a, x=(a["x"] / step).round() * step)


def _without_rounding(function: Function) -> Function:
    def wrong(**a: Any) -> tuple[Tensor, ...]:
        return (a["x"] @ a["packed"].dequantize(a["x"].dtype).T + a["bias"],)

    return wrong


def _repacked(change: Callable[[Tensor], Tensor]) -> Callable[[Function], Function]:
    return spoil(lambda a: changed(a, packed=pack_ternary(change(a["packed"].dequantize()))))


def _rescaled(factor: float) -> Callable[[Function], Function]:
    return spoil(lambda a: changed(a, packed=replace(a["packed"], scale=a["packed"].scale * factor)))


_SCAN: dict[str, Any] = {
    "op": "hgrn_scan",
    "time": {"i": 2, "f": 2, "h": 2},
    "causal": True,
    "lengths": (1, 7, 96, 131),
}
_LINEAR: dict[str, Any] = {
    "op": "ternary_linear",
    "outputs": ("out",),
    "time": {"x": 1, "out": 1},
    "batch": ("x",),
    "causal": True,  # tokens do not know of each other
    "split": _split_tokens,
}

CASES = (
    Case(
        label="forget gates, state",
        make=_gates,
        outputs=("h", "last"),
        gradients=("i", "f", "initial_state"),
        batch=("i", "f", "initial_state"),
        split=_split_scan,
        faults={
            "dropped tail": spoil_output(lambda h: h * (torch.arange(h.shape[2]) < 95)),
            "forgotten initial state": spoil(lambda a: changed(a, initial_state=None)),
            "i and f swapped": spoil(lambda a: changed(a, i=a["f"], f=a["i"])),
            "gate of the step before": spoil(lambda a: changed(a, f=a["f"].roll(1, -1))),
            "input twice weighted": spoil(lambda a: changed(a, i=a["i"] * (1 - a["f"]))),
            "state forgotten at a seam": _forgets_at_a_seam,
            "state of another row": spoil(lambda a: changed(a, initial_state=a["initial_state"].flip(0))),
        },
        **_SCAN,
    ),
    Case(
        label="any gates, from rest",
        make=_any_gates,
        outputs=("h",),
        gradients=("i", "f"),
        batch=("i", "f"),
        faults={
            "gates without their sign": spoil(lambda a: changed(a, f=a["f"].abs())),
            "gates kept above zero": spoil(lambda a: changed(a, f=a["f"].clamp(min=1e-3))),
            "sees the future": spoil(lambda a: changed(a, i=a["i"].roll(-1, -1))),
        },
        **_SCAN,
    ),
    Case(
        label="logits, lower bound, state",
        make=_logits(packed=False, bounded=True),
        outputs=("h", "last"),
        gradients=("i", "f", "initial_state", "lower_bound"),
        batch=("i", "f", "initial_state"),
        split=_split_scan,
        faults={
            "logits taken as gates": spoil(lambda a: changed(a, from_logits=False, lower_bound=None)),
            "forgotten lower bound": spoil(lambda a: changed(a, lower_bound=None)),
            "bound of another channel": spoil(lambda a: changed(a, lower_bound=a["lower_bound"].flip(0))),
            "forgotten SiLU": spoil(lambda a: _gates_of(a, silu=False)),
            "input without the bound": spoil(lambda a: _gates_of(a, bound=False)),
            "forgotten initial state": spoil(lambda a: changed(a, initial_state=None)),
        },
        **_SCAN,
    ),
    Case(
        label="sequences in one row",
        make=_logits(packed=True, bounded=False),
        outputs=("h", "last"),
        gradients=("i", "f", "initial_state"),
        faults={
            "sequences run on": run_on,
            "forgotten initial states": spoil(lambda a: changed(a, initial_state=None)),
            "states of other sequences": spoil(
                lambda a: changed(a, initial_state=a["initial_state"].flip(0))
            ),
            "last states of other sequences": spoil_output(lambda last: last.flip(0), 1),
        },
        **_SCAN,
    ),
    Case(
        label="bias",
        make=_tokens(norm=False),
        gradients=("x", "bias"),
        faults={
            "one scale for all tokens": spoil(_one_scale_for_all),
            "nothing rounded": _without_rounding,
            "dropped tail": spoil(lambda a: changed(a, x=a["x"] * (torch.arange(_IN) < _IN - 1))),
            "shifted by one": spoil(lambda a: changed(a, x=a["x"].roll(1, -1))),
            "sign lost": _repacked(torch.abs),
            "rows reversed": _repacked(lambda w: w.flip(0)),
            "wrong scale": _rescaled(127 / 128),
            "forgotten bias": spoil(lambda a: changed(a, bias=None)),
            "norm not asked for": spoil(lambda a: changed(a, norm_weight=torch.ones_like(a["x"][0, 0]))),
        },
        **_LINEAR,
    ),
    Case(
        label="norm and bias",
        make=_tokens(norm=True),
        gradients=("x", "bias", "norm_weight"),
        faults={
            "forgotten norm": spoil(lambda a: changed(a, norm_weight=None)),
            "norm without its weight": spoil(
                lambda a: changed(a, norm_weight=torch.ones_like(a["norm_weight"]))
            ),
            "another epsilon": spoil(lambda a: changed(a, eps=1e-5)),
        },
        **_LINEAR,
    ),
)
