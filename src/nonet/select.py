"""Which implementation serves a call: a pure function of the op and of what is asked of it."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nonet import native
from nonet.registry import Implementation, Op, load, methods


class Choice(NamedTuple):
    """The implementation that was chosen and why."""

    name: str
    reason: str


class UnsupportedError(ValueError):
    """The named implementation cannot serve this call; the message says why and which can."""


_NOTHING: Mapping[str, str] = MappingProxyType({})


def _refusal(
    impl: Implementation, device: str, dtype: str, options: frozenset[str], missing: Mapping[str, str]
) -> str | None:
    if device not in impl.devices:
        return f"{impl.name} does not run on {device}"
    if dtype not in impl.dtypes:
        return f"{impl.name} does not take {dtype}"
    refused = sorted(options & set(impl.refuses))
    if refused:
        return f"{impl.name} cannot serve {', '.join(refused)}"
    if impl.name in missing:
        return f"{impl.name} is missing: {missing[impl.name]}"
    return None


def select(
    op: Op,
    device: str,
    dtype: str,
    options: frozenset[str] = frozenset(),
    impl: str = "auto",
    missing: Mapping[str, str] = _NOTHING,
) -> Choice:
    """Chooses the implementation of ``op`` for a call.

    Args:
        op: the op's record.
        device: device type, such as ``"cpu"``.
        dtype: name of the floating type, such as ``"float32"``.
        options: names of the options that the call uses.
        impl: an implementation's name, or ``"auto"`` for the first of the op's list that can serve.
        missing: implementations that this machine lacks, and why; see :func:`absent`.

    Returns:
        The name and the reason, which says what stood in the way of each preferred one.

    Raises:
        UnsupportedError: ``impl`` is unknown or cannot serve the call.
    """
    refusals = {i.name: _refusal(i, device, dtype, options, missing) for i in op.implementations}
    able = [name for name, refusal in refusals.items() if refusal is None]
    if impl == "auto":
        if not able:
            why = "; ".join(str(refusal) for refusal in refusals.values())
            raise UnsupportedError(f"impl='auto' finds none that serves this call of {op.name}: {why}")
        passed = [r for name, r in refusals.items() if r and name != able[0]]
        before = list(refusals).index(able[0])
        why = "; ".join(passed[:before]) or "preferred, and able"
        return Choice(able[0], why)
    if impl not in refusals:
        raise UnsupportedError(
            f"impl={impl!r} does not exist for {op.name}; choose from auto, {', '.join(refusals)}"
        )
    if refusals[impl] is not None:
        raise UnsupportedError(
            f"impl={impl!r} cannot serve this call of {op.name}: {refusals[impl]}; "
            f"these can: {', '.join(able) or 'none'}"
        )
    return Choice(impl, "named by the caller")


def absent(op: Op, device: str) -> dict[str, str]:
    """Returns the implementations of ``op`` for ``device`` that this machine lacks, and why.

    Raises:
        NativeError: the C library is there and cannot be used.
    """
    if device == "cpu" and any(i.name == "cpu" for i in op.implementations):
        why = native.absence()
        if why is not None:
            return {"cpu": why}
    return {}


def implementation(op: Op, impl: str, tensor: Tensor, options: Iterable[str] = ()) -> Callable[..., Any]:
    """Returns the function that serves a call of ``op`` on tensors like ``tensor``."""
    if not isinstance(impl, str):
        raise TypeError(f"impl must be the name of an implementation, or 'auto'; got {impl!r}")
    dtype = str(tensor.dtype).removeprefix("torch.")
    target = _target(op.api, tensor.device.type, dtype, tuple(options), impl)
    return getattr(_Loaded, target)


class _Loaded:
    """Implementations by name; attributes, since a dictionary that is being traced does not grow."""


_names: dict[tuple[object, ...], str] = {}


# A compiled caller is told once, while it is traced.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _target(api: str, device: str, dtype: str, options: tuple[str, ...], impl: str) -> str:
    """Returns the attribute of ``_Loaded`` that serves a call, and sees to it that it is there."""
    asked = (api, device, dtype, options, impl)
    if asked not in _names:
        op = next(op for method in methods() for op in method.ops if op.api == api)
        missing = absent(op, device) if impl in ("auto", "cpu") else {}
        choice = select(op, device, dtype, frozenset(options), impl, missing)
        if missing and select(op, device, dtype, frozenset(options)).name in missing:
            _warn(missing["cpu"])
        target = next(i.target for i in op.implementations if i.name == choice.name)
        name = target.replace(".", "_").replace(":", "_")
        setattr(_Loaded, name, staticmethod(load(target)))
        _names[asked] = name
    return _names[asked]


@functools.cache
def _warn(why: str) -> None:
    """Says, once in a process, which ops have kernels that are not there."""
    slow = [op.name for m in methods() for op in m.ops if any(i.name == "cpu" for i in op.implementations)]
    warnings.warn(f"{', '.join(slow)} run on torch, which is slower: {why}", UserWarning, stacklevel=2)
