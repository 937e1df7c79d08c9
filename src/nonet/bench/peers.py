"""Other people's code for the same computations, called as its users call it.

Nothing is written anew here but the loops over time of :func:`eager_loop` and :func:`compiled_loop`, which
are what a user of PyTorch writes for want of an operator.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv1d, linear, silu


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
        name: what tables call it.
        call: takes an operation's arguments by name and returns its output; for whole models, takes a model
            and returns the one to run.
        package: whose code it is, a distribution whose version stands beside its figures; None for ours.
        channels_last: the layout that it wants, None for the workload's.
        alike: it wants all arguments in the dtype of the first.
        isa: the instruction set that the C library uses for it, None where it has no part in it.
    """

    name: str
    call: Callable[..., Any]
    package: str | None = None
    channels_last: bool | None = None
    alike: bool = False
    isa: str | None = None


# Steps in a compiled piece. A whole sequence in one piece takes minutes to compile, as each step is
# unrolled; a piece of one step saves nothing. This many compile in about twenty seconds.
STEPS = 32


def transformers_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, *, use_mambapy: bool = False, **others: Any
) -> Tensor:
    """Transformers' selective scan in PyTorch, which runs where no CUDA package is installed."""
    from transformers.models.mamba import modeling_mamba

    # Unwrapped, so that an installed CUDA package does not take its place.
    scan = inspect.unwrap(modeling_mamba.mamba_selective_scan)
    return scan(u, delta, A, B, C, use_mambapy=use_mambapy, **others)


def mambapy_scan(**arguments: Any) -> Tensor:
    """The same with mambapy's parallel scan inside, as ``use_mambapy=True`` of Transformers does it."""
    import mambapy.pscan  # noqa: F401  (without it Transformers would quietly take its loop)

    return transformers_scan(**arguments, use_mambapy=True)


def torch_conv(x: Tensor, weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """PyTorch's grouped convolution, cut to its causal part, then SiLU."""
    channels, taps = weight.shape
    y = conv1d(x, weight[:, None], bias, padding=taps - 1, groups=channels)[..., : x.shape[-1]]
    return silu(y) if activation == "silu" else y


def torch_linear(x: Tensor, weight: Tensor) -> Tensor:
    """PyTorch's linear layer."""
    return linear(x, weight)


def eager_loop(i: Tensor, f: Tensor) -> Tensor:
    """A loop over time, an addition and a multiplication a step."""
    return _steps(torch.zeros_like(i[..., 0]), i, f)[0]


def compiled_loop(i: Tensor, f: Tensor) -> Tensor:
    """The loop in pieces of :data:`STEPS` steps, each one call of a ``torch.compile``-d function."""
    h, pieces = torch.zeros_like(i[..., 0]), []
    for i_, f_ in zip(i.split(STEPS, -1), f.split(STEPS, -1), strict=True):
        # A shorter last piece would be compiled once more for its length.
        states, h = (_compiled() if i_.shape[-1] == STEPS else _steps)(h, i_, f_)
        pieces.append(states)
    return torch.cat(pieces, dim=-1)


def accelerated_scan(i: Tensor, f: Tensor) -> Tensor:
    """The tree of the package accelerated-scan, in the PyTorch version that it has for machines like this."""
    from accelerated_scan.ref import scan

    return scan(f.contiguous(), i.contiguous())


def _steps(h: Tensor, i: Tensor, f: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the states and the last one."""
    states = []
    for i_t, f_t in zip(i.unbind(-1), f.unbind(-1), strict=True):
        h = f_t * h + i_t
        states.append(h)
    return torch.stack(states, dim=-1), h


@functools.cache
def _compiled() -> Callable[..., tuple[Tensor, Tensor]]:
    # One compilation for each shape, with and without gradients, and number of threads. With fullgraph a
    # limit that is too low is an error; without, the loop would quietly run as it is.
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(_steps, dynamic=False, fullgraph=True)


PEERS: dict[str, tuple[Contender, ...]] = {
    "selective_scan": (
        Contender("transformers", transformers_scan, "transformers"),
        Contender("mambapy", mambapy_scan, "mambapy"),
    ),
    "causal_conv1d": (Contender("torch conv1d", torch_conv, "torch", channels_last=False),),
    "hgrn_scan": (
        Contender("eager loop", eager_loop, "torch"),
        Contender("compiled loop", compiled_loop, "torch"),
        Contender("accelerated-scan", accelerated_scan, "accelerated-scan", channels_last=False),
    ),
    "linear_rows": (Contender("torch linear", torch_linear, "torch", alike=True),),
}
