"""Ways to spoil a call: what a careless or hostile caller does to one of its arguments."""

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

NUMBERS = (
    True,
    0,
    1,
    -1,
    5,
    2.5,
    math.nan,
    math.inf,
    -math.inf,
    1j,
    10**16,
    2**70,
    np.int64(2),
    np.float32(0.5),
)
OBJECTS = (None, "3", "silu", b"x", [1], (), {}, np.ones((2, 2), np.float32), object(), torch.tensor(1.0))
VALUES = (math.nan, math.inf, -math.inf, 1e38, -1e38, 1e-42, -0.0, 1e4)
DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
)


def spoil(arguments, random):
    """Returns the arguments with something done to one of them, and what that was in words."""
    arguments = dict(arguments)
    name = random.choice([*arguments])
    value = arguments.get(name)
    if isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta:
        way = random.choice(WAYS)
        spoilt = way(value, random)
        done = way.__name__.strip("_")
    else:
        spoilt = random.choice(NUMBERS + OBJECTS)
        done = "another value"
    return {**arguments, name: spoilt}, f"{name}: {done}"


def on_meta(arguments):
    """Returns the arguments with every tensor on a device that holds no numbers."""
    return {
        name: value.to("meta")
        if isinstance(value, Tensor)
        else replace(value, codes=value.codes.to("meta"), scale=value.scale.to("meta"))
        if hasattr(value, "codes")
        else value
        for name, value in arguments.items()
    }


def no_tensor(x, random):
    return random.choice((*OBJECTS, *NUMBERS, x.tolist(), np.zeros(x.shape, np.float32)))


def dtype(x, random):
    return x.to(torch.complex64 if x.is_complex() else random.choice(DTYPES))


def meta(x, random):
    return x.to("meta")


def size(x, random):
    """One axis is longer or shorter."""
    if not x.dim():
        return x[None]
    axis = random.randrange(x.dim())
    wanted = max(0, x.shape[axis] + random.choice((-1, 1, 1, -x.shape[axis])))
    kept = x.narrow(axis, 0, min(wanted, x.shape[axis]))
    more = x.new_ones([*x.shape[:axis], wanted - kept.shape[axis], *x.shape[axis + 1 :]])
    return torch.cat([kept, more], axis)


def axes(x, random):
    """An axis more or less."""
    return random.choice((x[None], x[..., None], x.flatten(), x.reshape(-1)[:1].squeeze()))


def values(x, random):
    """Numbers at the edges of their dtype, or beyond what an index may be."""
    x = x.detach().clone(memory_format=torch.contiguous_format)
    if not x.numel():
        return x
    flat = x.view(-1)
    for place in random.sample(range(len(flat)), min(len(flat), random.choice((1, 1, 2, 1000)))):
        if x.dtype in (torch.int32, torch.int64):
            ends = torch.iinfo(x.dtype)
            flat[place] = random.choice((-1, -2, 0, 1, 10**6, ends.max, ends.min))
        elif x.is_floating_point():
            flat[place] = random.choice(VALUES)
    return x


def order(x, random):
    """The same numbers, the other way round."""
    return x[torch.arange(len(x) - 1, -1, -1)] if x.dim() else x


def sparse(x, random):
    return x.float().to_sparse() if x.is_floating_point() else x.to_sparse()


WAYS = (no_tensor, dtype, dtype, meta, meta, size, size, axes, values, values, values, order, sparse)
