"""What PEFT's ``adapter_config.json`` may hold, and what it asks for in a model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from nonet.lora.config import ALL_LINEAR, LoraConfig
from nonet.lora.layer import base_modules
from nonet.lora.patterns import Patterns
from nonet.lora.targets import Sizes, check_targets, ending_in, free_modules, linear_modules

FILE = "adapter_config.json"
_NAMES = (list, tuple, set)

# Fields that are understood, with the types that they may have beside null.
_READ: dict[str, tuple[type, ...]] = {
    "peft_type": (str,),
    "r": (int,),
    "lora_alpha": (int, float),
    "lora_dropout": (int, float),
    "target_modules": (str, *_NAMES),
    "rank_pattern": (dict,),
    "alpha_pattern": (dict,),
    "bias": (str,),
    "modules_to_save": _NAMES,
    "use_rslora": (bool,),
    "use_dora": (bool,),
    "init_lora_weights": (bool, str),
}
# Those that say nothing about what is computed.
_SILENT = {
    *("base_model_name_or_path", "revision", "task_type", "inference_mode", "auto_mapping", "peft_version"),
    *("fan_in_fan_out", "megatron_core", "qalora_group_size", "runtime_config", "eva_config"),
}
# First values that are replaced by those in the file; others have changed the model's weights as well.
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class Asked:
    """What a configuration asks for in one model: its options, and the modules by their paths."""

    config: LoraConfig
    targets: dict[str, Sizes]
    full: tuple[str, ...]


def asked(model: nn.Module, fields: Mapping[str, Any]) -> Asked:
    """Returns what a configuration of PEFT asks for in a model; nothing is made yet.

    Raises:
        ValueError: a field has a wrong type, would change what is computed and is not supported, or fits no
            module; the message names it.
    """
    _check_fields(fields)
    patterns = Patterns(FILE)
    paths = [path for path, _ in base_modules(model) if path]
    ends = tuple(fields.get("modules_to_save") or ())
    full = tuple(path for path in paths if path.endswith(ends))
    reached = _reached(model, fields["target_modules"], full, patterns)
    rank, alpha = _given(fields, "r", 8), _given(fields, "lora_alpha", 8)
    ranks, alphas = fields.get("rank_pattern") or {}, fields.get("alpha_pattern") or {}
    sizes = {p: (_fitting(ranks, p, rank, patterns), _fitting(alphas, p, alpha, patterns)) for p in reached}
    uniform = not (ranks or alphas)
    try:
        config = LoraConfig(
            rank=rank,
            alpha=alpha,
            targets=tuple(reached) if uniform else tuple((path, *of) for path, of in sizes.items()),
            dropout=_given(fields, "lora_dropout", 0.0),
            bias=_given(fields, "bias", "none"),
            variants=tuple(v for v in ("rslora", "dora") if fields.get(f"use_{v}")),
            full=full,
        )
        check_targets(model, config, sizes)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{FILE}: {error}") from error
    return Asked(config, sizes, full)


def _given(fields: Mapping[str, Any], name: str, default: Any) -> Any:
    value = fields.get(name)
    return default if value is None else value


def _check_fields(fields: Mapping[str, Any]) -> None:
    if fields.get("peft_type") != "LORA":
        raise ValueError(f"peft_type={fields.get('peft_type')!r} is not LoRA; it must be 'LORA'")
    for name, value in fields.items():
        if name in _READ and not (value is None or _is_of(value, _READ[name])):
            kinds = " or ".join(sorted({"list" if kind in _NAMES else kind.__name__ for kind in _READ[name]}))
            raise ValueError(f"{FILE}: {name}={value!r} is not supported; it must be of the type {kinds}")
        if name not in _READ and name not in _SILENT and value:
            raise ValueError(f"{FILE}: {name}={value!r} is not supported")
    for name in ("rank_pattern", "alpha_pattern"):
        if wrong := [v for v in (fields.get(name) or {}).values() if not _is_of(v, (int, float))]:
            raise ValueError(f"{FILE}: {name} must give numbers; got {wrong[0]!r}")
    start = fields.get("init_lora_weights", True)
    if start not in _STARTS:
        raise ValueError(
            f"{FILE}: init_lora_weights={start!r} is not supported: it changes weights of "
            "the model itself, or freezes a factor; PEFT can convert it when it saves "
            "(path_initial_model_for_weight_conversion)"
        )
    if not fields.get("target_modules"):
        raise ValueError(f"{FILE}: target_modules={fields.get('target_modules')!r} must name a module")


def _is_of(value: Any, kinds: tuple[type, ...]) -> bool:
    """Says whether a value has one of some types; a list is one of names, and a truth value no number."""
    if isinstance(value, _NAMES):
        return isinstance(value, kinds) and all(isinstance(name, str) and name for name in value)
    return isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))


def _reached(
    model: nn.Module, given: str | Iterable[str], full: tuple[str, ...], patterns: Patterns
) -> list[str]:
    """Returns the paths that ``target_modules`` reaches; names for other models are passed over."""
    modules = free_modules(model, full)
    if isinstance(given, str):
        whole = given.lower() == ALL_LINEAR
        found = linear_modules(model, modules) if whole else [p for p in modules if patterns.fits(given, p)]
    else:
        named = {path for name in given for path in ending_in(modules, name)}
        found = [path for path in modules if path in named]
    if not found:
        raise ValueError(
            f"{FILE}: target_modules={given!r} fits no module of the model, a {type(model).__name__}"
        )
    return found


def _fitting(values: Mapping[str, Any], path: str, default: Any, patterns: Patterns) -> Any:
    """Returns the value of the first pattern that fits a path from its beginning or from behind a dot."""
    starts = [0, *(at + 1 for at, letter in enumerate(path) if letter == ".")]
    return next((v for pattern, v in values.items() if patterns.fits(pattern, path, starts)), default)
