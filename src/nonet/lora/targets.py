"""Which modules of a model an adapter reaches, by PEFT's rules."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from nonet.lora.config import ALL_LINEAR, LoraConfig
from nonet.lora.layer import Adapted, adapted, base_modules


def find_targets(model: nn.Module, config: LoraConfig) -> dict[str, tuple[int, float]]:
    """Returns rank and alpha of every module that gets factors, by path.

    Raises:
        ValueError: a name fits no module, or a module that can carry no adapter.
    """
    full = find_full(model, config)
    inside = tuple(f"{path}." for path in full)
    modules = {p: m for p, m in base_modules(model) if p and p not in full and not p.startswith(inside)}
    found: dict[str, tuple[int, float]] = {}
    if config.targets == ALL_LINEAR:
        head = getattr(model, "get_output_embeddings", lambda: None)()
        found = {
            path: (config.rank, config.alpha)
            for path, module in modules.items()
            if isinstance(module, (nn.Linear, Conv1D)) and module is not head and not _is_read(model, path)
        }
    elif isinstance(config.targets, str):
        found = {p: (config.rank, config.alpha) for p in modules if re.fullmatch(config.targets, p)}
    else:
        for target in config.targets:
            name, rank, alpha = (target, config.rank, config.alpha) if isinstance(target, str) else target
            reached = list(ending_in(modules, name))
            if not reached:
                raise ValueError(f"targets names {name!r}, which fits no module of {type(model).__name__}")
            found = {**dict.fromkeys(reached, (rank, alpha)), **found}
    if not found:
        raise ValueError(f"targets={config.targets!r} fits no module of {type(model).__name__}")
    for path, (rank, _) in found.items():
        _check(model, path, rank, config)
    return {path: found[path] for path in modules if path in found}


def find_full(model: nn.Module, config: LoraConfig) -> list[str]:
    """Returns the paths of modules that are trained in full; raises ValueError when a name fits none."""
    paths = [path for path, _ in base_modules(model)]
    reached: set[str] = set()
    for name in config.full:
        mine = set(ending_in(paths, name))
        if not mine:
            raise ValueError(f"full names {name!r}, which fits no module of {type(model).__name__}")
        reached |= mine
    return [path for path in paths if path in reached]


def ending_in(paths: Iterable[str], name: str) -> Iterable[str]:
    """Returns the paths that are ``name`` or end with it behind a dot."""
    return (path for path in paths if path == name or path.endswith(f".{name}"))


def _is_read(model: nn.Module, path: str) -> bool:
    """Says whether a module's weight is read where the module is never called, so that no term could act.

    So it is in torch's own attention and encoder layers, and with the step sizes of Transformers' Mamba
    layers, whose bias joins inside the recurrence.
    """
    owner, _, name = path.rpartition(".")
    around = model.get_submodule(owner)
    if name == "dt_proj" and hasattr(around, "A_log"):
        return getattr(around.dt_proj, "bias", None) is not None
    return isinstance(around, (nn.MultiheadAttention, nn.TransformerEncoderLayer))


def _check(model: nn.Module, path: str, rank: int, config: LoraConfig) -> None:
    """Raises ValueError when a module cannot carry the adapter."""
    module = model.get_submodule(path)
    own: Any = type(module)
    kind = own if isinstance(module, Adapted) else adapted(own)
    if "forward" in vars(module):
        raise ValueError(
            f"{path} has a forward pass of its own, as accelerate's hooks leave; add adapters before those"
        )
    if _is_read(model, path):
        raise ValueError(f"targets names {path}, whose weight is read without a call of the module")
    if getattr(module, "max_norm", None) is not None:
        raise ValueError(f"{path} rescales its own weight (max_norm) and can carry no adapter")
    if "dora" in config.variants and not kind.lora_mergeable:
        name = kind.derived_from.__name__
        raise ValueError(f"variants: dora needs the norms of a plain weight; {path} is a {name}")
    if "pissa" in config.variants and rank > (most := min(kind.lora_shape(module))):  # type: ignore[arg-type]
        raise ValueError(f"rank={rank} of {path} must be at most {most} with pissa, which starts from an SVD")
