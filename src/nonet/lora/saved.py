"""PEFT's format: an adapter as the contents of its two files, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nonet.lora.adapt import add_lora, remove_lora
from nonet.lora.config import ALL_LINEAR, LoraConfig
from nonet.lora.factors import Factors
from nonet.lora.layer import base_modules
from nonet.lora.state import LoraState, adapter_modules, state_of, use
from nonet.lora.targets import ending_in, find_full

Model = TypeVar("Model", bound=nn.Module)

PREFIX = "base_model.model."

# What the files call the factors of a linear layer and of an embedding.
_LINEAR = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
_EMBEDDING = {**_LINEAR, "a": "lora_embedding_A", "b": "lora_embedding_B"}

# Fields of adapter_config.json that are understood, and those that say nothing about what is computed.
_READ = {
    *("peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "rank_pattern", "alpha_pattern"),
    *("bias", "modules_to_save", "use_rslora", "use_dora", "init_lora_weights"),
}
_SILENT = {
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version"),
    *("fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config", "eva_config"),
}
# First values that are replaced by those in the file; others have changed the model's weights as well.
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


def to_peft(model: nn.Module, name: str = "default") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns an adapter as PEFT's ``adapter_config.json`` and ``adapter_model.safetensors`` hold it.

    PiSSA's becomes a plain adapter of twice the rank for the unchanged model. The seed is no field of PEFT's
    and is not among them; it stands in ``model.nonet_lora.configs[name]``.

    Args:
        model: a model with adapters.
        name: the adapter.

    Raises:
        ValueError: there is no such adapter.
    """
    state = state_of(model)
    state.check_known(name)
    config, modules = state.configs[name], adapter_modules(model, name)
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for path, module in modules.items():
        factors: Factors = module.lora[name]  # type: ignore[assignment]
        a, b = factors.pair()
        keys = _EMBEDDING if module.lora_embedding else _LINEAR
        tensors[f"{PREFIX}{path}.{keys['a']}"], tensors[f"{PREFIX}{path}.{keys['b']}"] = a, b
        if factors.magnitude is not None:
            tensors[f"{PREFIX}{path}.{keys['magnitude']}"] = factors.magnitude
        ranks[path] = len(a)
        root = math.sqrt(len(a)) if "rslora" in config.variants else len(a)
        alphas[path] = _short(float(f"{factors.scale * root:.12g}"))
    full = find_full(model, config)
    mine = dict(_own_tensors(model))
    for path in full:
        for own, value in model.get_submodule(path).state_dict().items():
            if f"{path}.{own}" in mine:  # else it is a factor of another adapter
                tensors[f"{PREFIX}{path}.{own}"] = value
    for path, parameter in state.trained[name].items():
        owner, _, own = path.rpartition(".")
        inner = f"{owner}.base_layer.{own}" if owner in modules else path
        tensors[f"{PREFIX}{inner}"] = parameter
    rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
    names = [path for path, _ in base_modules(model)]
    return {
        "peft_type": "LORA",
        "task_type": _task(model),
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None) or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "target_modules": _endings(list(modules), names, full),
        "rank_pattern": _patterns(ranks, rank),
        "alpha_pattern": _patterns(alphas, alpha),
        "bias": config.bias,
        "modules_to_save": full or None,
        "use_rslora": "rslora" in config.variants,
        "use_dora": "dora" in config.variants,
        "init_lora_weights": True,
        "fan_in_fan_out": any(hasattr(module, "nf") for module in modules.values()),
    }, {key: value.detach().clone().contiguous() for key, value in tensors.items()}


def from_peft(
    model: Model, config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str = "default"
) -> Model:
    """Adds an adapter from what PEFT's ``adapter_config.json`` and ``adapter_model.safetensors`` hold.

    Args:
        model: the model that it was trained for.
        config: the contents of ``adapter_config.json``.
        tensors: the contents of ``adapter_model.safetensors``.
        name: the name that the adapter gets.

    Raises:
        ValueError: the configuration asks for something that is not supported, a tensor is missing, is
            unexpected or has another shape, or one changes a weight of the model itself; the message names
            it, and the model is as it was.
    """
    _refuse(config)
    before = vars(model).get("nonet_lora")
    selected = before.selected if isinstance(before, LoraState) else None
    add_lora(model, _config(model, config), name)
    try:
        _fill(model, tensors, name)
    except ValueError:
        remove_lora(model, name)
        if isinstance(before, LoraState):
            use(model, selected)
        raise
    return model


def _refuse(config: Mapping[str, Any]) -> None:
    """Raises ValueError for a field that would change what is computed and is not supported."""
    if config.get("peft_type") != "LORA":
        raise ValueError(f"peft_type={config.get('peft_type')!r} is not LoRA; it must be 'LORA'")
    for field, value in config.items():
        if field not in _READ and field not in _SILENT and value:
            raise ValueError(f"adapter_config.json: {field}={value!r} is not supported")
    start = config.get("init_lora_weights", True)
    if start not in _STARTS:
        raise ValueError(
            f"adapter_config.json: init_lora_weights={start!r} is not supported: it changes weights of "
            "the model itself, or freezes a factor; PEFT can convert it when it saves "
            "(path_initial_model_for_weight_conversion)"
        )


def _config(model: nn.Module, config: Mapping[str, Any]) -> LoraConfig:
    """Returns the options that PEFT's stand for in this model."""
    given = config.get("target_modules")
    if not given:
        raise ValueError(f"adapter_config.json: target_modules={given!r} must name a module")
    paths = [path for path, _ in base_modules(model) if path]
    full = tuple(path for path in paths if path.endswith(tuple(config.get("modules_to_save") or ())))
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    targets: Any = given
    if isinstance(given, str):
        targets = ALL_LINEAR if given.lower() == ALL_LINEAR else given
        reached = paths if targets == ALL_LINEAR else [p for p in paths if re.fullmatch(given, p)]
    else:
        targets = tuple(n for n in sorted(given) if any(ending_in(paths, n)))
        reached = [path for n in targets for path in ending_in(paths, n)]
        if not targets:
            raise ValueError(f"adapter_config.json: target_modules={given!r} fits no module of the model")
    if ranks or alphas:
        if targets == ALL_LINEAR:
            raise ValueError("adapter_config.json: rank_pattern needs the names of target_modules")
        saved = tuple(f"{path}." for path in full)
        targets = {
            path: (_fitting(ranks, path, rank), _fitting(alphas, path, alpha))
            for path in reached
            if not f"{path}.".startswith(saved)
        }
    marks = (("rslora", "use_rslora"), ("dora", "use_dora"))
    return LoraConfig(
        rank=rank,
        alpha=alpha,
        targets=targets,
        dropout=config.get("lora_dropout") or 0.0,
        bias=config.get("bias") or "none",
        variants=tuple(variant for variant, field in marks if config.get(field)),
        full=full,
    )


@torch.no_grad()
def _fill(model: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    """Copies tensors into a fresh adapter; raises ValueError when they are not exactly what it needs."""
    state, modules = state_of(model), adapter_modules(model, name)
    wanted: dict[str, Tensor] = {}
    for path, module in modules.items():
        for part, key in (_EMBEDDING if module.lora_embedding else _LINEAR).items():
            value = getattr(module.lora[name], part)
            if value is not None:
                wanted[f"{path}.{key}"] = value
    wanted |= state.trained[name]
    own = {key: value for key, value in _own_tensors(model) if key not in wanted}
    given = {_plain(key, modules): value for key, value in tensors.items()}
    if missing := [key for key in wanted if key not in given]:
        raise ValueError(f"the adapter lacks {len(missing)} tensors, such as {missing[0]}")
    for key, value in given.items():
        if key in own and own[key].shape == value.shape:
            if not torch.equal(own[key], value.to(own[key])):
                raise ValueError(f"the adapter changes {key} of the model itself, which is not supported")
        elif key not in wanted:
            raise ValueError(f"the adapter holds {key}, which the model has no place for")
        elif wanted[key].shape != value.shape:
            shapes = f"{tuple(value.shape)}; the model needs {tuple(wanted[key].shape)}"
            raise ValueError(f"the adapter's {key} has the shape {shapes}")
        else:
            wanted[key].copy_(value)


def _own_tensors(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Returns a model's own parameters and buffers by path, without those of adapters."""
    for path, module in base_modules(model):
        for own, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield f"{path}.{own}" if path else own, value


def _plain(key: str, modules: Iterable[str]) -> str:
    """Returns the path of a tensor in the model, without what PEFT's wrappers put into it."""
    key = key.removeprefix(PREFIX)
    owner, _, own = key.rpartition(".base_layer.")
    return f"{owner}.{own}" if owner in modules else key


def _fitting(patterns: Mapping[str, Any], path: str, default: Any) -> Any:
    """Returns the value of the first pattern that fits a path, by PEFT's rule."""
    return next((v for p, v in patterns.items() if re.match(rf"(.*\.)?({p})$", path)), default)


def _patterns(values: Mapping[str, Any], default: Any) -> dict[str, Any]:
    """Returns the values that are not the default by last name, or by path where modules of a name differ."""
    by_name: dict[str, set[Any]] = {}
    for path, value in values.items():
        by_name.setdefault(path.rpartition(".")[2], set()).add(value)
    found = {}
    for path, value in values.items():
        last = path.rpartition(".")[2]
        if value != default:
            found[re.escape(last) if len(by_name[last]) == 1 else f"^{re.escape(path)}"] = value
    return found


def _endings(reached: list[str], paths: list[str], full: list[str]) -> list[str]:
    """Returns the last names of modules where these reach no other module, or else the whole paths."""
    lasts = sorted({path.rpartition(".")[2] for path in reached})
    inside = tuple(f"{path}." for path in full)
    hit = {p for last in lasts for p in ending_in(paths, last) if not f"{p}.".startswith(inside)}
    return lasts if hit == set(reached) else reached


def _commonest(values: Iterable[Any]) -> Any:
    values = list(values)
    return max(values, key=values.count)


def _short(value: float) -> float:
    return int(value) if value == int(value) else value


def _task(model: nn.Module) -> str | None:
    """Returns PEFT's word for what a model is for; None for one that does not write."""
    if not getattr(model, "can_generate", lambda: False)():
        return None
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"  # type: ignore[union-attr]
