"""Putting nonet's operations into a Transformers model, and taking them out again."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor, nn

from nonet.hf.mamba import FalconMambaMixer, MambaMixer
from nonet.mamba import METHOD
from nonet.select import Choice, UnsupportedError, absent, select
from nonet.slots import Mixer

Model = TypeVar("Model", bound=nn.Module)

_OWN: dict[type, type] = {fast: fast.__bases__[1] for fast in (MambaMixer, FalconMambaMixer)}
_FAST = {own: fast for fast, own in _OWN.items()}

# What the forward pass reads as a tensor; the other projections it calls, whatever they have become.
_READ = ("conv1d.weight", "dt_proj.weight", "dt_proj.bias", "A_log", "D")


@dataclass(frozen=True)
class Report:
    """What a call of :func:`accelerate` did; ``str`` of it is the text that was printed."""

    changed: tuple[str, ...]  # names of the layers whose forward pass is now nonet's
    left: tuple[tuple[str, str], ...]  # names of others, and why they are as they were
    implementations: tuple[tuple[str, str, str], ...]  # operation, the implementation chosen, and why

    def __str__(self) -> str:
        lines = [f"put on nonet's operations: {_names(self.changed)}" if self.changed else "nothing changed"]
        lines += [f"{op}: {chosen} ({why})" for op, chosen, why in self.implementations]
        for reason in dict.fromkeys(reason for _, reason in self.left):
            lines.append(f"left {_names(tuple(n for n, r in self.left if r == reason))}: {reason}")
        return "\n".join(f"nonet: {line}" for line in lines)


def accelerate(model: Model, impl: str = "auto") -> Model:
    """Lets nonet compute the Mamba layers of a Transformers model; returns the model.

    The layers of Transformers' Mamba and FalconMamba models get another forward pass, and nothing else:
    parameters, buffers, state dict, configuration and caches stay as they are, and so does a checkpoint.
    A cache that is in use goes on. What is computed differs from Transformers' own forward pass where that
    is wrong: several tokens at once continue from a cache, and padding leaves the states alone.

    What was changed, what was left and why is printed to stderr and kept as ``model.nonet_report``, a
    :class:`Report`. :func:`restore` undoes it. A second call changes nothing.

    Args:
        model: any module that holds such layers, a PEFT model too.
        impl: the implementation of nonet's operations, or ``"auto"``.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
        UnsupportedError: ``impl`` is not ``"auto"`` and cannot serve the model's device and dtype.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
    changed, left, chosen = {}, [], {}
    for name, module in model.named_modules():
        if reason := _reason(module, impl):
            left.append((name, reason))
        elif type(module) in _FAST:
            try:
                chosen.update(_choices(module, impl))
                changed[name] = module
            except UnsupportedError as error:
                if impl != "auto":
                    raise
                left.append((name, str(error)))
    for module in changed.values():
        _become(module, _FAST)
        module.nonet_impl = impl
    if not changed and not left:
        left = [(type(model).__name__, "it holds no layer of Mamba or FalconMamba")]
    report = Report(tuple(changed), tuple(left), tuple((op, *choice) for op, choice in chosen.items()))
    model.nonet_report = report  # type: ignore[assignment]
    sys.stderr.write(f"{report}\n")
    return model


def restore(model: Model) -> Model:
    """Gives back every forward pass that :func:`accelerate` replaced; returns the model.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
        ValueError: a layer's forward pass was wrapped since, so that its own cannot be put back.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module; got {type(model).__name__}")
    fast = {name: m for name, m in model.named_modules() if type(m) in _OWN}
    if wrapped := [name for name, module in fast.items() if _is_wrapped(module)]:
        raise ValueError(
            f"first remove the hooks of {_names(tuple(wrapped))}, which hold nonet's forward pass"
        )
    for module in fast.values():
        _become(module, _OWN)
        del module.nonet_impl
    for module in model.modules():
        module.__dict__.pop("nonet_report", None)
    return model


def _reason(module: nn.Module, impl: str) -> str | None:
    """Returns why a layer that looks like one of Mamba's is left as it is, or None."""
    kind = type(module)
    if isinstance(module, Mixer):
        return "it is nonet's own layer and needs nothing"
    if kind in _OWN:
        return f"on nonet's operations already (impl={module.nonet_impl!r})"
    if kind not in _FAST:
        if isinstance(module, tuple(_FAST)):
            return f"{kind.__name__} is derived from Transformers' layer and may compute something else"
        if generation := _generation(module):
            return f"{kind.__name__} is a layer of {generation}, which nonet does not serve"
        return None
    if _is_wrapped(module):
        return "its forward pass was replaced on the object, as accelerate's hooks do for offloading"
    for name in _READ:
        value: Any = module
        for part in name.split("."):
            value = getattr(value, part, None)
        if type(value) not in (nn.Parameter, Tensor) or not value.is_floating_point():
            return f"{name} is no plain tensor ({type(value).__name__}), as after quantisation or sharding"
    if impl == "auto" and module.A_log.device.type != "cpu" and importlib.util.find_spec("mamba_ssm"):
        return "mamba_ssm is installed and serves it on this device; name an impl to replace it"
    return None


def _generation(module: nn.Module) -> str | None:
    """Returns which recurrence with a learned rate a layer of another model computes, or None."""
    rate, skip = (getattr(module, name, None) for name in ("A_log", "D"))
    if not isinstance(rate, Tensor):
        return None
    if not isinstance(skip, Tensor):
        return "another recurrence than Mamba's"
    # The first generation has a rate for each number of a state, the second one for each head.
    return "Mamba-2" if rate.dim() == 1 else "Mamba in a form of its own (of the first generation)"


def _is_wrapped(module: nn.Module) -> bool:
    """Returns whether the object has a forward pass that is not its class's, which hooks leave behind."""
    forward = module.__dict__.get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def _become(module: nn.Module, classes: dict[type, type]) -> None:
    module.__dict__.pop("forward", None)
    module.__class__ = classes[type(module)]


def _choices(mixer: Any, impl: str) -> dict[str, Choice]:
    """Returns what will serve each operation of a layer; raises UnsupportedError when nothing can."""
    device, dtype = mixer.conv1d.weight.device.type, str(mixer.conv1d.weight.dtype).removeprefix("torch.")
    return {
        f"{op.name} on {device} in {dtype}": select(
            op, device, dtype, impl=impl, missing=absent(op, device) if impl in ("auto", "cpu") else {}
        )
        for op in METHOD.ops
    }


def _names(names: tuple[str, ...]) -> str:
    """Returns names in a row, of many only the ends."""
    return ", ".join(names) if len(names) <= 3 else f"{names[0]}, ..., {names[-1]} ({len(names)})"
