"""Calls drawn from the annotations of an operation: sizes, values, and how they lie in memory."""

import inspect
import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import torch
from jaxtyping import AbstractArray
from rules import CHOSEN_BY, NUMBERS, PRESENT, SIZES, VALUES, WIDER
from torch import Tensor

from nonet.flash import Traffic
from nonet.matmulfree import PackedTernary
from nonet.position import RotaryConfig

KNOWN = (bool, int, float, str, torch.dtype, torch.device, PackedTernary, RotaryConfig, Traffic)
DTYPES = (torch.float32, torch.float32, torch.float32, torch.bfloat16, torch.float16, torch.float64)
LAYOUTS = ("plain", "plain", "plain", "turned", "turned", "stepped", "inside", "repeated", "negated")
WORD = re.compile(r"(?:(\d+)\*)?([A-Za-z]\w*)([+-]\d+)?")


def hints(operation):
    """The annotations of an operation's arguments, by name."""
    found = typing.get_type_hints(operation)
    found.pop("return", None)
    return found


def kinds(hint):
    """The types that an annotation allows, None left out."""
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    return [kind for kind in (typing.get_args(hint) if union else (hint,)) if kind is not types.NoneType]


def is_tensor(kind):
    return inspect.isclass(kind) and issubclass(kind, Tensor | AbstractArray)


def can_be_drawn(operation):
    """Whether every argument is a tensor, a number, or of another kind that is known here."""
    every = [kind for hint in hints(operation).values() for kind in kinds(hint)]
    return bool(every) and all(
        kind in KNOWN or is_tensor(kind) or typing.get_origin(kind) is Callable for kind in every
    )


@dataclass
class Drawing:
    """One call while it is drawn. What depends on something else draws that first."""

    operation: Callable
    random: Random
    zero: str | None = None  # a letter whose size shall be zero
    sizes: dict = field(default_factory=dict)
    drawn: dict = field(default_factory=dict)

    def __post_init__(self):
        self.name = self.operation.__name__
        self.hints = hints(self.operation)
        self.generator = torch.Generator().manual_seed(self.random.getrandbits(40))
        self.dtype = self.choose(*DTYPES)
        self.packed = "cu_seqlens" in self.hints and self.choose(True, False)

    def arguments(self):
        """Returns all arguments, in the order of the signature."""
        return {name: self.argument(name) for name in self.hints if name != "impl"}

    def argument(self, name):
        if name not in self.drawn:
            self.drawn[name] = self._argument(name)
        return self.drawn[name]

    def _argument(self, name):
        kind, *_ = kinds(self.hints[name])
        if self.hints[name] is not kind and not self.rule(PRESENT, name, lambda d: d.choose(True, False))(
            self
        ):
            return None
        if kind is bool:
            return self.choose(True, False)
        if not is_tensor(kind):
            return self.rule(NUMBERS, name)(self)
        x = self.rule(VALUES, name, Drawing.normal)(self, self.shape(getattr(kind, "dim_str", "")))
        if x.is_floating_point():
            wide = name in WIDER and self.choose(True, False, False)
            x = x.to(torch.promote_types(self.dtype, torch.float32) if wide else self.dtype)
        elif x.dtype is torch.int64:
            x = x.to(self.choose(torch.int32, torch.int64))
        return laid(x, "plain" if name in CHOSEN_BY else self.choose(*LAYOUTS), self.random)

    def size(self, letter):
        if letter not in self.sizes:
            rule = self.rule(SIZES, letter, lambda d: d.choose(1, 1, 2, 2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 40))
            self.sizes[letter] = 0 if letter == self.zero else rule(self)
        return self.sizes[letter]

    def shape(self, letters):
        """Returns the sizes that a string of jaxtyping spells."""
        sizes = []
        for word in letters.split():
            sort, letter = ("", word) if word[0].isalnum() else (word[0], word[1:])
            if sort == "*" and letter in ("B", "G"):  # an axis that may be left out
                sizes += self.choose([], [self.size(letter)])
            elif sort == "*":  # any number of axes, the same wherever they are named
                sizes += self.sizes.setdefault(letter, self.choose([], [3], [2, 1], [1, 2, 2]))
            elif sort == "#":  # as it is elsewhere, or one
                sizes.append(self.choose(1, self.size(letter)))
            else:
                times, letter, more = WORD.fullmatch(word).groups()
                sizes.append(max(0, int(times or 1) * self.size(letter) + int(more or 0)))
        return sizes

    def rule(self, table, name, *otherwise):
        """Returns what a table holds for a name of this operation, or for the name."""
        known = [table[key] for key in (f"{name} of {self.name}", name) if key in table]
        return [*known, *otherwise][0]

    def choose(self, *values):
        return self.random.choice(values)

    def normal(self, shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def whole(self, shape, low, high):
        """Whole numbers from low up to and with high."""
        return torch.randint(low, max(low, high) + 1, shape, generator=self.generator)


def laid(x, layout, random):
    """Returns the same values (one of them everywhere, for ``repeated``), laid out otherwise in memory."""
    if not x.dim() or not x.numel():
        return x
    axis = random.randrange(x.dim())
    if layout == "turned":
        order = random.sample(range(x.dim()), x.dim())
        return x.permute(order).contiguous().permute([order.index(k) for k in range(x.dim())])
    if layout == "stepped":
        return x.repeat_interleave(2, axis)[(slice(None),) * axis + (slice(None, None, 2),)]
    if layout == "inside":
        around = torch.zeros([n + 3 for n in x.shape], dtype=x.dtype)
        inside = around[tuple(slice(1, n + 1) for n in x.shape)]
        return inside.copy_(x)
    if layout == "repeated" and x.is_floating_point():
        return x.narrow(axis, 0, 1).expand(x.shape)
    if layout == "negated" and x.dtype in (torch.float32, torch.float64):
        return torch.complex(torch.zeros_like(x), -x).conj().imag  # torch only notes that it is negative
    return x
