"""Adapters as directories in PEFT's format: what is written here PEFT loads, and the other way round."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import save_file
from torch import Tensor, nn

import nonet.lora.saved
import nonet.prompt.saved
from nonet.files import read_json, read_tensors, reading
from nonet.hf.card import card, code_of_adapter
from nonet.lora.adapt import RESERVED, select_lora
from nonet.writing import write_folder

Model = TypeVar("Model", bound=nn.Module)

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
_KINDS = ("LORA", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")


def save_adapter(
    model: nn.Module, directory: str | Path, name: str | None = None, about: dict[str, Any] | None = None
) -> Path:
    """Writes one adapter of a model as a directory that PEFT loads; returns the directory.

    The directory holds ``adapter_config.json``, ``adapter_model.safetensors`` and a model card. All of them
    are written before one is put in place, the configuration last, so that a directory with one is whole.

    Args:
        model: with an adapter of :func:`nonet.lora.add_lora` or :func:`nonet.prompt.add_prompt`.
        directory: made where it is not there; files of these three names in it are replaced.
        name: which adapter: its name for one of LoRA's, ``"prompt"`` for a trained prompt. None for the only
            one there is.
        about: figures for the card, such as the seed, the text and what was measured.

    Raises:
        ValueError: the model has no adapter of that name, or several and none is named.
        OSError: a file cannot be written; what the directory held before is still there.
    """
    config, tensors = _contents(model, name)
    plain = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}

    def write(fresh: Path) -> None:
        save_file(plain, fresh / WEIGHTS, metadata={"format": "pt"})
        (fresh / CARD).write_text(_card(config, plain, about or {}), encoding="utf-8")
        (fresh / CONFIG).write_text(
            json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8"
        )

    place = Path(directory)
    write_folder(place, write, CONFIG)
    return place


def load_adapter(model: Model, directory: str | Path, name: str = "default") -> Model:
    """Puts the adapter of a directory in PEFT's format on a model; returns the model.

    Args:
        model: the base that the adapter was made for. It can have other adapters already: any number of
            LoRA's, and one prompt beside them.
        directory: as PEFT's ``save_pretrained`` or :func:`save_adapter` writes it.
        name: what an adapter of LoRA is called on the model.

    Raises:
        ValueError: the directory holds no such adapter, a file of it cannot be read, its weights are a
            pickle, its kind or one of its settings is not supported, or its tensors do not fit the model; the
            message names the file and says which. The model is then as it was.
    """
    place = Path(directory)
    if not (place / CONFIG).is_file():
        raise ValueError(f"directory={str(directory)!r} holds no {CONFIG}, so it is no adapter")
    if not (place / WEIGHTS).is_file():
        pickle = " (a pickle is never opened)" if (place / "adapter_model.bin").exists() else ""
        raise ValueError(f"directory={str(directory)!r} holds no {WEIGHTS}{pickle}")
    config = read_json(place / CONFIG)
    kind = config.get("peft_type")
    if kind not in _KINDS:
        allowed = ", ".join(_KINDS)
        raise ValueError(f"peft_type={kind!r} in {place / CONFIG} is not supported; choose from {allowed}")
    tensors = read_tensors(place / WEIGHTS)
    with reading(place):
        if kind == "LORA":
            return nonet.lora.saved.from_peft(model, config, tensors, name)
        return nonet.prompt.saved.from_peft(model, config, tensors)


def _contents(model: nn.Module, name: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns what the two files of an adapter hold."""
    state = getattr(model, "nonet_lora", None)
    there = [*(state.configs if state else ()), *([RESERVED] if hasattr(model, "soft_prompt") else ())]
    if not there:
        raise ValueError("model has no adapter; add one with nonet.lora.add_lora or nonet.prompt.add_prompt")
    names = ", ".join(map(repr, there))
    if name is None and len(there) > 1:
        raise ValueError(
            f"model has {len(there)} adapters, {names}, and a directory holds one; give the name of each and "
            "a directory of its own"
        )
    name = there[0] if name is None else name
    if name not in there:
        raise ValueError(f"name={name!r} is no adapter of the model; it has {names}")
    if name != RESERVED:
        return nonet.lora.saved.to_peft(model, name)
    # What an adapter of LoRA trains is its own, and not trained beside the prompt.
    bare = state is not None and state.merged is None
    with select_lora(model, None) if bare else contextlib.nullcontext():
        return nonet.prompt.saved.to_peft(model)


def _card(config: dict[str, Any], tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    base = config.get("base_model_name_or_path")
    figures = {
        "kind": config["peft_type"],
        "base model": base or "not named",
        "numbers in this file": f"{sum(t.numel() for t in tensors.values()):,}",
        **about,
    }
    return card(
        "An adapter made with nonet", figures, code_of_adapter(base or "the/base/model"), library="peft"
    )
