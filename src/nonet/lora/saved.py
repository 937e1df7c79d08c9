"""PEFT's format: an adapter as the contents of its two files, and back."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nonet.lora.adapt import attach, check_name
from nonet.lora.factors import Factors
from nonet.lora.layer import Adapted, base_modules
from nonet.lora.peft_config import Asked, asked
from nonet.lora.state import LoraState, adapter_modules, state_of
from nonet.lora.targets import ending_in, find_copies, find_head, kind_of

Model = TypeVar("Model", bound=nn.Module)

PREFIX = "base_model.model."

# What the files call the factors of a linear layer and of an embedding.
_LINEAR = {"a": "lora_A.weight", "b": "lora_B.weight", "magnitude": "lora_magnitude_vector"}
_EMBEDDING = {**_LINEAR, "a": "lora_embedding_A", "b": "lora_embedding_B"}

# PEFT's words for what models are for, by the ends of their classes' names.
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}


def to_peft(model: nn.Module, name: str = "default") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns an adapter as PEFT's ``adapter_config.json`` and ``adapter_model.safetensors`` hold it.

    PiSSA's becomes a plain adapter of twice the rank for the unchanged model. The seed is no field of PEFT's
    and is not among them; it stands in ``model.nonet_lora.configs[name]``.

    Args:
        model: a model with adapters.
        name: the adapter.

    Raises:
        ValueError: there is no such adapter, a module that carried it was replaced, or parameters are trained
            beside the adapters, which the files have no place for.
    """
    state = state_of(model)
    state.check_known(name)
    config, modules = state.configs[name], adapter_modules(model, name)
    _check_beside(model, state)
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
    full = state.full[name]
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
        "task_type": _task(model, full),
        "base_model_name_or_path": getattr(getattr(model, "config", None), "_name_or_path", None) or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": config.dropout,
        "target_modules": _targets(list(modules), names, full),
        "rank_pattern": _patterns(ranks, rank),
        "alpha_pattern": _patterns(alphas, alpha),
        "bias": config.bias,
        "modules_to_save": list(full) or None,
        "use_rslora": "rslora" in config.variants,
        "use_dora": "dora" in config.variants,
        "init_lora_weights": True,
        "fan_in_fan_out": any(hasattr(module, "nf") for module in modules.values()),
    }, {key: value.detach().clone().contiguous() for key, value in tensors.items()}


def _check_beside(model: nn.Module, state: LoraState) -> None:
    """Raises ValueError for a parameter of the model that is trained and belongs to no adapter."""
    copies = {id(p) for trained in state.trained.values() for p in trained.values()}
    own = (pair for pair in _own_tensors(model) if isinstance(pair[1], nn.Parameter))
    if beside := [path for path, p in own if p.requires_grad and id(p) not in copies]:
        raise ValueError(
            f"{beside[0]} is trained beside the adapters, and their files have no place for it; name its "
            "module in full, or freeze it with requires_grad_(False)"
        )


def from_peft(
    model: Model, config: Mapping[str, Any], tensors: Mapping[str, Tensor], name: str = "default"
) -> Model:
    """Adds an adapter from what PEFT's ``adapter_config.json`` and ``adapter_model.safetensors`` hold.

    Everything is checked before anything is made, so that a file of wrong sizes takes no memory.

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
    check_name(model, name)
    plan = asked(model, config)
    given = {_plain(key, plan.targets): value for key, value in tensors.items()}
    _check_tensors(model, given, plan)
    attach(model, plan.config, name, plan.targets, plan.full)
    places = _places(adapter_modules(model, name), name) | state_of(model).trained[name]
    with torch.no_grad():
        for key, place in places.items():
            place.copy_(given[key])
    return model


def _check_tensors(model: nn.Module, given: Mapping[str, Tensor], plan: Asked) -> None:
    """Raises ValueError when tensors are not exactly what an adapter needs."""
    state = vars(model).get("nonet_lora")
    own = dict(_own_tensors(model)) | (state.originals if isinstance(state, LoraState) else {})
    copies = find_copies(model, plan.config, plan.targets, plan.full)
    wanted = _shapes(model, plan) | {key: tuple(own[key].shape) for key in copies}
    if missing := [key for key in wanted if key not in given]:
        raise ValueError(f"the adapter lacks {len(missing)} tensors, such as {missing[0]}")
    for key, value in given.items():
        shape = wanted.get(key, tuple(own[key].shape) if key in own else None)
        if shape is None:
            raise ValueError(f"the adapter holds {key}, which the model has no place for")
        if tuple(value.shape) != shape:
            raise ValueError(
                f"the adapter's {key} has the shape {tuple(value.shape)}; the model needs {shape}"
                f"{_remedy(model, key)}"
            )
        if key in wanted and not value.is_floating_point():
            raise ValueError(f"the adapter's {key} must be of a floating dtype; got {value.dtype}")
        if key not in wanted and not torch.equal(own[key], value.to(own[key])):
            raise ValueError(f"the adapter changes {key} of the model itself, which is not supported")


def _shapes(model: nn.Module, plan: Asked) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the factors that a plan asks for, by the names that files have for them."""
    found: dict[str, tuple[int, ...]] = {}
    for path, (rank, _) in plan.targets.items():
        module: Any = model.get_submodule(path)
        kind = kind_of(module)
        keys, (out, wide) = _EMBEDDING if kind.lora_embedding else _LINEAR, kind.lora_shape(module)
        found[f"{path}.{keys['a']}"], found[f"{path}.{keys['b']}"] = (rank, wide), (out, rank)
        if "dora" in plan.config.variants:
            found[f"{path}.{keys['magnitude']}"] = (out,)
    return found


def _places(modules: Mapping[str, Adapted], name: str) -> dict[str, Tensor]:
    """Returns the factors of an adapter by the names that files have for them."""
    return {
        f"{path}.{key}": value
        for path, module in modules.items()
        for part, key in (_EMBEDDING if module.lora_embedding else _LINEAR).items()
        if (value := getattr(module.lora[name], part)) is not None
    }


def _remedy(model: nn.Module, key: str) -> str:
    """Returns what to do about a shape that differs, where the vocabulary can be the reason."""
    ends = [getattr(model, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output")]
    paths = [path for path, module in model.named_modules() if module is ends[0] or module is ends[1]]
    if not key.startswith(tuple(f"{path}." for path in paths)):
        return ""
    return "; if it was trained with another vocabulary, call model.resize_token_embeddings first"


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


def _targets(reached: Sequence[str], paths: list[str], full: Sequence[str]) -> list[str] | str:
    """Returns the last names of modules where these reach no other module, or else a pattern of the paths."""
    lasts = sorted({path.rpartition(".")[2] for path in reached})
    inside = tuple(f"{path}." for path in full)
    hit = {p for last in lasts for p in ending_in(paths, last) if not f"{p}.".startswith(inside)}
    return lasts if hit == set(reached) else "|".join(map(re.escape, reached))


def _commonest(values: Iterable[Any]) -> Any:
    values = list(values)
    return max(values, key=values.count)


def _short(value: float) -> float:
    return int(value) if value == int(value) else value


def _task(model: nn.Module, full: Sequence[str]) -> str | None:
    """Returns PEFT's word for what a model is for, or None.

    PEFT trains and looks for the head of a task that it knows, so the task is named only where the head is
    among the modules in full.
    """
    if getattr(model, "can_generate", lambda: False)():
        return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"  # type: ignore[union-attr]
    head = find_head(model)
    if not head or not set(head) <= set(full):
        return None
    names = [kind.__name__ for kind in type(model).__mro__]
    return next((task for end, task in _TASKS.items() if any(n.endswith(end) for n in names)), None)
