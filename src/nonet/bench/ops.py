"""Operations: their arguments, who computes them, and whether what comes out is right."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nonet import native
from nonet.bench.correct import Outcome, judge
from nonet.bench.limits import _largest_cache
from nonet.bench.peers import PEERS, Contender
from nonet.bench.timing import Timed
from nonet.bench.workloads import Sizes, Workload
from nonet.registry import Op, load, methods
from nonet.select import Choice, absent, select
from nonet.testing.case import Arguments, cast

_CACHE = 2**25  # bytes of the largest cache, where that is unknown or small


@dataclass(frozen=True)
class Bound:
    """A contender with its arguments: what to time, and the tensors that were there before."""

    timed: Timed
    given: tuple[Tensor, ...]


def chosen(workload: Workload) -> dict[str, Choice]:
    """Returns what serves the operation when nothing else is asked for."""
    op = _op(workload)
    return {op.name: select(op, "cpu", workload.dtype, missing=absent(op, "cpu"))}


def contenders(workload: Workload, peers: bool) -> list[Contender]:
    """Returns who computes a workload: first ours as users call it, then ours in other ways, then peers."""
    op = _op(workload)
    function = load(op.api)
    runs = chosen(workload)[op.name].name
    ours = Contender("nonet", function)
    others = []
    if runs == "cpu":
        library = native.library()
        ours = replace(ours, isa=library.isa)
        lower = library.isas()[: library.isas().index(library.isa)]
        others = [replace(ours, name=f"nonet {isa}", isa=isa) for isa in reversed(lower)]
        others.append(Contender("nonet torch", partial(function, impl="torch")))
    if workload.series:
        return [ours]
    if workload.kernel == "causal_conv1d":
        others.append(replace(ours, name="nonet channels first", channels_last=False))
    return [ours, *others, *(PEERS[workload.kernel] if peers else ())]


def bind(workload: Workload, contender: Contender) -> Bound:
    """Returns a contender ready to be timed on the workload's sizes."""
    arguments = _arguments(workload, workload.sizes, contender)
    given = tuple(v for v in arguments.values() if isinstance(v, Tensor))
    dout = torch.ones_like(given[0], requires_grad=False)
    run = _cold if workload.kernel == "linear_rows" else partial
    return Bound(Timed(run(_run, workload, contender, arguments, dout), _before(contender)), given)


def check(workload: Workload, them: Sequence[Contender]) -> dict[str, Any]:
    """Holds contenders to the oracle; returns :func:`judge`'s findings, and ``on``, the sizes it took."""
    sizes = {**workload.sizes, **workload.checked}
    oracle = Contender("oracle", partial(load(_op(workload).api), impl="reference"))
    arguments = _arguments(workload, sizes, oracle)

    def outcome(contender: Contender) -> Outcome:
        _before(contender)()
        return _outcome(workload, contender, _arguments(workload, sizes, contender))

    gold = _outcome(workload, oracle, cast(arguments, torch.float64))
    findings = judge(them, outcome, _outcome(workload, oracle, arguments), gold)
    _before(them[0])()
    return {"on": sizes, **findings}


def _op(workload: Workload) -> Op:
    return next(op for method in methods() for op in method.ops if op.name == workload.kernel)


def _before(contender: Contender) -> Callable[[], None]:
    isa = contender.isa
    return (lambda: None) if isa is None else partial(native.library().use_isa, isa)


def _run(workload: Workload, contender: Contender, arguments: Arguments, dout: Tensor) -> Any:
    if workload.what == "forward":
        with torch.no_grad():
            return contender.call(**arguments)
    out = contender.call(**arguments)
    if workload.what == "training forward":
        return out
    leaves = [v for v in arguments.values() if isinstance(v, Tensor)]
    return out, *torch.autograd.grad(out, leaves, dout)


def _cold(
    run: Callable[..., Any], workload: Workload, contender: Contender, arguments: Arguments, dout: Tensor
) -> Callable[[], Any]:
    """Returns a call whose weight comes from memory, as in a model: it is another's turn each time."""
    weight = arguments["weight"]
    count = -(-2 * max(_largest_cache(), _CACHE) // weight.nbytes)
    weights = itertools.cycle([weight, *(weight.clone() for _ in range(count - 1))])
    return lambda: run(workload, contender, {**arguments, "weight": next(weights)}, dout)


def _outcome(workload: Workload, contender: Contender, arguments: Arguments) -> Outcome:
    """Returns the output, and the gradients if there are any, by name."""
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    first = arguments[names[0]]
    dout = torch.randn(first.shape, generator=torch.Generator().manual_seed(1))
    dout = dout.to(getattr(torch, workload.dtype)).to(first.dtype)  # rounded once, for every dtype
    results = _run(workload, contender, arguments, dout)
    out, *gradients = results if isinstance(results, tuple) else (results,)
    return {"out": out, **{f"d{n}": g for n, g in zip(names, gradients, strict=bool(gradients))}}


def _arguments(workload: Workload, sizes: Sizes, contender: Contender) -> Arguments:
    """Returns the arguments in the contender's layout, the large ones in the workload's dtype."""
    last = workload.channels_last if contender.channels_last is None else contender.channels_last
    large, rows = getattr(torch, workload.dtype), getattr(torch, workload.rows)
    arguments = _MAKE[workload.kernel](sizes, torch.Generator().manual_seed(0))
    if workload.kernel == "linear_rows":
        arguments = {"x": arguments["x"].to(rows), "weight": arguments["weight"].to(large)}
        return cast(arguments, rows) if contender.alike else arguments
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            if value.dim() == 3:
                value = value.to(large)
                value = value.mT.contiguous().mT if last else value.contiguous()
            arguments[name] = value.requires_grad_(workload.what != "forward")
    return arguments


def _selective_scan(sizes: Sizes, generator: torch.Generator) -> Arguments:
    """Values as in a model at the start of training, with steps between 0.001 and 0.1."""
    B, C, N, T = (sizes[letter] for letter in "BCNT")
    steps = torch.logspace(-3, -1, C)
    return {
        "u": torch.randn(B, C, T, generator=generator),
        "delta": 0.1 * torch.randn(B, C, T, generator=generator),
        "A": -torch.arange(1.0, N + 1).repeat(C, 1),
        "B": torch.randn(B, N, T, generator=generator),
        "C": torch.randn(B, N, T, generator=generator),
        "D": torch.ones(C),
        "z": torch.randn(B, C, T, generator=generator),
        "delta_bias": torch.log(torch.expm1(steps)),
        "delta_softplus": True,
    }


def _linear_rows(sizes: Sizes, generator: torch.Generator) -> Arguments:
    R, I, O = (sizes[letter] for letter in "RIO")  # noqa: E741
    return {
        "x": torch.randn(R, I, generator=generator),
        "weight": torch.randn(O, I, generator=generator) / I**0.5,
    }


def _causal_conv1d(sizes: Sizes, generator: torch.Generator) -> Arguments:
    B, C, W, T = (sizes[letter] for letter in "BCWT")
    return {
        "x": torch.randn(B, C, T, generator=generator),
        "weight": torch.randn(C, W, generator=generator) / W**0.5,
        "bias": torch.randn(C, generator=generator),
        "activation": "silu",
    }


def _hgrn_scan(sizes: Sizes, generator: torch.Generator) -> Arguments:
    B, C, T = (sizes[letter] for letter in "BCT")
    f = torch.sigmoid(torch.randn(B, C, T, generator=generator) + 1)
    return {"i": torch.randn(B, C, T, generator=generator) * (1 - f), "f": f}


_MAKE: dict[str, Callable[[Sizes, torch.Generator], Arguments]] = {
    "selective_scan": _selective_scan,
    "causal_conv1d": _causal_conv1d,
    "hgrn_scan": _hgrn_scan,
    "linear_rows": _linear_rows,
}
