"""Which modules of a model an adapter reaches, by PEFT's rules."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from nonet.lora.config import ALL_LINEAR, LoraConfig
from nonet.lora.layer import Adapted, adapted, base_modules

Sizes = tuple[int, float]  # rank and alpha

# Ends of the names of classes whose head is made for a task, so that no base checkpoint holds it.
_TASKS = ("Classification", "QuestionAnswering", "MultipleChoice")


def find_targets(model: nn.Module, config: LoraConfig, full: Collection[str]) -> dict[str, Sizes]:
    """Returns rank and alpha of every module that gets factors, by path.

    Raises:
        ValueError: a name fits no module, or a module that can carry no adapter.
    """
    modules = free_modules(model, full)
    found: dict[str, Sizes] = {}
    if config.targets == ALL_LINEAR:
        found = dict.fromkeys(linear_modules(model, modules), (config.rank, config.alpha))
    elif isinstance(config.targets, str):
        found = {p: (config.rank, config.alpha) for p in modules if re.fullmatch(config.targets, p)}
    else:
        for target in config.targets:
            name, rank, alpha = (target, config.rank, config.alpha) if isinstance(target, str) else target
            reached = list(ending_in(modules, name))
            if not reached and any(ending_in(full, name)):
                raise ValueError(
                    f"targets names {name!r}, which is trained in full and gets no factors; take it out of "
                    f"targets, or give full without it (full is {tuple(full)})"
                )
            if not reached:
                raise ValueError(f"targets names {name!r}, which fits no module of {type(model).__name__}")
            found = {**dict.fromkeys(reached, (rank, alpha)), **found}
    if not found:
        raise ValueError(f"targets={config.targets!r} fits no module of {type(model).__name__}")
    check_targets(model, config, found)
    return {path: found[path] for path in modules if path in found}


def find_full(model: nn.Module, config: LoraConfig) -> tuple[str, ...]:
    """Returns the paths of modules that are trained in full; raises ValueError when a name fits none."""
    if config.full is None:
        return find_head(model)
    paths = [path for path, _ in base_modules(model)]
    reached: set[str] = set()
    for name in config.full:
        mine = set(ending_in(paths, name))
        if not mine:
            raise ValueError(f"full names {name!r}, which fits no module of {type(model).__name__}")
        reached |= mine
    return tuple(path for path in paths if path in reached)


def find_head(model: nn.Module) -> tuple[str, ...]:
    """Returns the paths of what a model for classification or question answering has beside its base."""
    named = any(kind.__name__.endswith(_TASKS) for kind in type(model).__mro__)
    if not (isinstance(model, PreTrainedModel) and named) or model.base_model is model:
        return ()
    beside = ((path, module) for path, module in model.named_children() if module is not model.base_model)
    free = {path for path, _ in base_modules(model)}
    return tuple(path for path, module in beside if path in free and any(True for _ in module.parameters()))


def find_copies(
    model: nn.Module, config: LoraConfig, targets: Collection[str], full: Collection[str]
) -> dict[str, nn.Parameter]:
    """Returns the biases and the weights of modules in full that an adapter trains copies of, by path."""
    inside = tuple(f"{path}." for path in full)
    found = {}
    for owner, module in base_modules(model):
        for own, parameter in module.named_parameters(recurse=False):
            path = f"{owner}.{own}" if owner else own
            biased = own == "bias" and (
                config.bias == "all" or (config.bias == "lora_only" and owner in targets)
            )
            if biased or path.startswith(inside) or owner in full:
                found[path] = parameter
    return found


def free_modules(model: nn.Module, full: Collection[str]) -> dict[str, nn.Module]:
    """Returns the modules that can get factors, by path: all but those trained in full."""
    inside = tuple(f"{path}." for path in full)
    return {p: m for p, m in base_modules(model) if p and p not in full and not p.startswith(inside)}


def linear_modules(model: nn.Module, modules: Mapping[str, nn.Module]) -> list[str]:
    """Returns the paths that ``"all-linear"`` stands for: linear layers but the output embedding."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return [
        path
        for path, module in modules.items()
        if isinstance(module, (nn.Linear, Conv1D)) and module is not head and not _is_read(model, path)
    ]


def ending_in(paths: Iterable[str], name: str) -> Iterable[str]:
    """Returns the paths that are ``name`` or end with it behind a dot."""
    return (path for path in paths if path == name or path.endswith(f".{name}"))


def kind_of(module: nn.Module) -> type[Adapted]:
    """Returns the class that a module has, or gets, when it carries adapters; raises ValueError for none."""
    own: Any = type(module)
    return own if isinstance(module, Adapted) else adapted(own)


def check_targets(model: nn.Module, config: LoraConfig, targets: Mapping[str, Sizes]) -> None:
    """Raises ValueError when a module cannot carry the adapter."""
    for path, (rank, _) in targets.items():
        _check(model, path, rank, config)


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
    kind: Any = kind_of(module)
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
    if "pissa" not in config.variants:
        return
    if rank > (most := min(kind.lora_shape(module))):
        raise ValueError(f"rank={rank} of {path} must be at most {most} with pissa, which starts from an SVD")
    if not bool(module.weight.isfinite().all()):  # type: ignore[operator]
        raise ValueError(
            f"variants: pissa starts from an SVD, and the weight of {path} holds numbers that are not finite"
        )
