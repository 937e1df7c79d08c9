"""Adapters as directories in PEFT's format: what is written here PEFT loads, and the other way round."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nonet.hf.card import card, code_of_adapter
from nonet.registry import load

Model = TypeVar("Model", bound=nn.Module)

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
_KINDS = ("LORA", "PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING")


def save_adapter(
    model: nn.Module, directory: str | Path, name: str = "default", about: dict[str, Any] | None = None
) -> Path:
    """Writes the adapter of a model as a directory that PEFT loads; returns the directory.

    The directory holds ``adapter_config.json``, ``adapter_model.safetensors`` and a model card. Each file is
    written under another name and then put in place, the configuration last, so that a directory with one
    is whole.

    Args:
        model: with an adapter of :func:`nonet.lora.add_lora` or :func:`nonet.prompt.add_prompt`.
        directory: made where it is not there; files of these three names in it are replaced.
        name: which adapter of LoRA's, of which a model can have several.
        about: figures for the card, such as the seed, the text and what was measured.

    Raises:
        ValueError: the model has no adapter of that name.
    """
    if hasattr(model, "nonet_lora"):
        config, tensors = load("nonet.lora.saved:to_peft")(model, name)
    elif hasattr(model, "soft_prompt"):
        config, tensors = load("nonet.prompt.saved:to_peft")(model)
    else:
        raise ValueError("model has no adapter; add one with nonet.lora.add_lora or nonet.prompt.add_prompt")
    place = Path(directory)
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix=".writing-") as scratch:
        fresh = Path(scratch)
        plain = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
        save_file(plain, fresh / WEIGHTS, metadata={"format": "pt"})
        (fresh / CARD).write_text(_card(config, plain, about or {}), encoding="utf-8")
        (fresh / CONFIG).write_text(
            json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8"
        )
        for file in (WEIGHTS, CARD, CONFIG):
            (fresh / file).replace(place / file)
    return place


def load_adapter(model: Model, directory: str | Path, name: str = "default") -> Model:
    """Puts the adapter of a directory in PEFT's format on a model; returns the model.

    Args:
        model: the base that the adapter was made for.
        directory: as PEFT's ``save_pretrained`` or :func:`save_adapter` writes it.
        name: what an adapter of LoRA is called on the model.

    Raises:
        ValueError: the directory holds no such adapter, its weights are a pickle, its kind or one of its
            settings is not supported, or its tensors do not fit the model; the message says which.
    """
    place = Path(directory)
    if not (place / CONFIG).is_file():
        raise ValueError(f"directory={str(directory)!r} holds no {CONFIG}, so it is no adapter")
    if not (place / WEIGHTS).is_file():
        pickle = " (a pickle is never opened)" if (place / "adapter_model.bin").exists() else ""
        raise ValueError(f"directory={str(directory)!r} holds no {WEIGHTS}{pickle}")
    config = json.loads((place / CONFIG).read_text(encoding="utf-8"))
    kind = config.get("peft_type")
    if kind not in _KINDS:
        allowed = ", ".join(_KINDS)
        raise ValueError(f"peft_type={kind!r} in {place / CONFIG} is not supported; choose from {allowed}")
    tensors = load_file(place / WEIGHTS)
    adapted: Model
    if kind == "LORA":
        adapted = load("nonet.lora.saved:from_peft")(model, config, tensors, name)
    else:
        adapted = load("nonet.prompt.saved:from_peft")(model, config, tensors)
    return adapted


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
