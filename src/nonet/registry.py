"""The Method record and the list of methods; everything that loops over methods loops over this.

Nothing here imports torch. A record names its code by ``"module:attribute"`` strings, which
:func:`load` turns into objects when they are needed.
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any, Literal

Slot = Literal["mixer", "position", "linear", "adapter", "pairing"]
SLOTS: dict[Slot, str] = {
    "mixer": "how tokens exchange information",
    "position": "how order is known",
    "linear": "what a weight matrix is",
    "adapter": "how a trained model learns a new task",
    "pairing": "how two models generate together",
}

FLOATS = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op: its name, its code, and what it can serve."""

    name: Literal["reference", "torch", "cpu", "triton"]
    target: str
    devices: tuple[str, ...] = ("cpu", "cuda", "mps")
    dtypes: tuple[str, ...] = FLOATS
    refuses: tuple[str, ...] = ()  # names of options that it cannot serve


@dataclass(frozen=True)
class Op:
    """A public function with several implementations, the preferred first and the oracle last."""

    name: str
    api: str
    implementations: tuple[Implementation, ...]


@dataclass(frozen=True)
class Part:
    """What a method puts into a slot of the model, under the name that a configuration uses.

    ``role`` says what a comparison does with it: ``method`` and ``baseline`` take part by default,
    a ``variant`` when it is named.
    """

    slot: Slot
    name: str
    target: str  # the nn.Module that fills the slot
    config: str | None = None  # its frozen dataclass of options
    title: str = ""
    role: Literal["method", "baseline", "variant"] = "method"
    letter: str = ""  # mixers: its sign in a pattern string
    cache: str = ""  # mixers: the kind of cache layer that decoding needs
    causal: bool = True  # can serve language modelling
    bidirectional: bool = False  # mixers: can serve an encoder
    recurrent: bool = False  # mixers: the state's size does not grow with the context
    learning_rate: float = 1.0  # suited to it, relative to dense attention with rotary positions
    ops: tuple[str, ...] = ()  # the ops of its method that it calls


@dataclass(frozen=True)
class Method:
    """One of the nine: what it is called, where it was published, and what it brings."""

    name: str
    title: str
    slots: tuple[Slot, ...]
    papers: tuple[str, ...]  # arXiv identifiers, the method's own first
    idea: str
    use: str
    ops: tuple[Op, ...] = ()
    parts: tuple[Part, ...] = ()

    def op(self, name: str) -> Op:
        """Returns the op called ``name``; raises KeyError when there is none."""
        return {op.name: op for op in self.ops}[name]


_HOMES = ("flash", "matmulfree", "mamba", "tandem", "position", "prompt", "lora", "reformer", "linformer")

# What a slot holds when no method fills it.
_BASELINES = (
    Part("linear", "dense", "torch.nn:Linear", title="Dense", role="baseline"),
    Part(
        "adapter",
        "full",
        "nonet.training.finetune:train_every_weight",
        title="Full fine-tuning",
        role="baseline",
    ),
    Part("adapter", "untuned", "nonet.training.finetune:train_nothing", title="No tuning", role="baseline"),
    Part("pairing", "alone", "nonet.training.speed:write_alone", title="Primary alone", role="baseline"),
    Part(
        "pairing",
        "assisted",
        "nonet.training.speed:write_assisted",
        title="Assisted generation",
        role="baseline",
    ),
)

# How a layer's output joins its input, in place of a plain sum.
RESIDUALS = {"standard": None, "reversible": "nonet.reformer.reversible:reversible"}


@functools.cache
def methods() -> tuple[Method, ...]:
    """Returns the record of every method that is built, in the order of the notebook's table."""
    return tuple(importlib.import_module(f"nonet.{home}").METHOD for home in _HOMES)


def method(name: str) -> Method:
    """Returns one record by name; raises ValueError naming the known ones."""
    known = {m.name: m for m in methods()}
    if name not in known:
        raise ValueError(f"method={name!r} is not known; choose from {', '.join(known)}")
    return known[name]


def parts(slot: Slot) -> tuple[Part, ...]:
    """Returns everything that can fill ``slot``, the methods' parts and the baselines."""
    brought = [part for m in methods() for part in m.parts]
    return tuple(part for part in (*brought, *_BASELINES) if part.slot == slot)


def part(slot: Slot, name: str) -> Part:
    """Returns the part called ``name`` of ``slot``; raises ValueError naming the known ones."""
    known = {p.name: p for p in parts(slot)}
    if name not in known:
        raise ValueError(f"{slot}={name!r} is not known; choose from {', '.join(known)}")
    return known[name]


def method_of(part: Part) -> Method | None:
    """Returns the method that brings ``part``, or None for a baseline that torch has."""
    return next((m for m in methods() if part in m.parts), None)


def load(target: str) -> Any:
    """Returns the object that ``"module:attribute"`` names, importing its module."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
