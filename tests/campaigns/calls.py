"""Random calls of every public operation: each gives the oracle's answer, or says which argument is wrong.

Operations are the public functions of the methods whose arguments are tensors and numbers. A call that fits
is served. One that was spoilt is served as the oracle serves it, or refused by a ValueError or TypeError that
begins with the name of an argument. Kernels give their answer on every instruction set of the machine.
"""

import importlib
import inspect
import re
from functools import cache
from random import Random

import torch
from drawn import Drawing, can_be_drawn, hints
from judged import Expected, WrongError, hold, results
from spoilt import on_meta, spoil
from torch import Tensor

from nonet import methods, native
from nonet.registry import load

COUNT = 10_000
LIMIT = 60  # seconds, under sanitizers and on a busy machine

# What Python and torch raise where nobody thought of a case.
ERRORS = (ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError, RuntimeError)
ERRORS += (UnboundLocalError, Warning)


@cache
def operations():
    """Every public operation with the names of its implementations, in a fixed order."""
    found = {}
    for method in methods():
        home = importlib.import_module(f"nonet.{method.name}")
        ops = {load(op.api): [i.name for i in op.implementations] for op in method.ops}
        public = [f for f in (getattr(home, name) for name in home.__all__) if inspect.isfunction(f)]
        found |= {f: ops.get(f, []) for f in [*ops, *public] if can_be_drawn(f)}
    return sorted(found.items(), key=lambda item: (item[0].__module__, item[0].__name__))


def attempt(seed, number):
    """Makes one call; returns ``"served"`` or ``"refused"``, or raises WrongError where that is not right."""
    random = Random(f"{seed} {number}")
    operation, implementations = random.choice(operations())
    sort = random.choice(("fits", "fits", "empty", "spoilt", "spoilt"))
    spelt = " ".join(getattr(hint, "dim_str", "") for hint in hints(operation).values())
    letters = sorted({*re.findall(r"[A-Za-z]\w*", spelt)}) if sort == "empty" else []
    arguments = Drawing(operation, random, random.choice(letters or [None])).arguments()
    if implementations:
        arguments["impl"] = random.choice(["auto", "auto", *implementations])
    how = ""
    for _ in range(random.choice((1, 1, 1, 2)) if sort == "spoilt" else 0):
        arguments, what = spoil(arguments, random)
        how += f"; {what}"
    if sort == "spoilt" and random.random() < 0.04:
        arguments, how = on_meta(arguments), f"{how}; all on meta"
    torch.set_num_threads(random.choice((1, 1, 2, 3)))
    learn = random.random() < 0.4
    how = f"{operation.__name__}({described(arguments)}){how}{'; with gradients' if learn else ''}"
    try:
        return judged(operation, implementations, arguments, learn, must=sort == "fits")
    except WrongError as wrong:
        raise WrongError(f"{wrong}\n    {how}") from wrong
    except ERRORS as error:
        raise WrongError(f"{type(error).__name__}: {error}\n    {how}") from error


def judged(operation, implementations, arguments, learn, must):
    """Makes a call and compares it; ``must`` says that it has to be served."""
    tensors = {n: x for n, x in arguments.items() if isinstance(x, Tensor)}
    leaves = [n for n, x in tensors.items() if learn and x.is_floating_point()]
    before = {n: bits(x) for n, x in tensors.items()}
    try:
        found = results(operation, arguments, leaves)
    except (ValueError, TypeError) as refusal:
        names = "|".join(inspect.signature(operation).parameters)
        if not re.match(rf"({names})\b", str(refusal)):
            raise WrongError(
                f"{type(refusal).__name__} begins with no argument's name: {refusal}"
            ) from refusal
        if must and not str(refusal).startswith("impl="):
            raise WrongError(f"a call that fits was refused: {refusal}") from refusal
        return "refused"
    if changed := [n for n, x in tensors.items() if not torch.equal(bits(x), before[n])]:
        raise WrongError(f"{', '.join(changed)} changed in the call")
    expected = Expected(operation, bool(implementations), arguments, leaves)
    hold(found, expected)
    if "cpu" in implementations and native.absence() is None:
        library = native.library()
        *narrower, widest = library.isas()
        for isa in narrower:
            library.use_isa(isa)
            hold(results(operation, arguments, leaves), expected, f" on {isa}")
        library.use_isa(widest)
    return "served"


def bits(x):
    """A copy of the numbers that a tensor holds, of any dtype; none where they are not there or not dense."""
    if x.is_meta or x.layout is not torch.strided:
        return torch.empty(0)
    return x.resolve_neg().clone(memory_format=torch.contiguous_format).flatten().view(torch.uint8)


def described(arguments):
    """The arguments in words: a tensor as its dtype and shape, and its strides where they say more."""
    words = []
    for name, x in arguments.items():
        said = repr(x)[:60]
        if isinstance(x, Tensor):
            said = f"{str(x.dtype).removeprefix('torch.')}{[*x.shape]}"
            said += "" if x.layout is not torch.strided or x.is_contiguous() else f" by {x.stride()}"
        words.append(f"{name}={said}")
    return ", ".join(words)
