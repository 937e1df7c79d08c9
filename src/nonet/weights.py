"""Whether the files of a model hold its weights: all of them, no others, and undamaged."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoModelForCausalLM

from nonet.files import read_json

PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def check_files(place: Path) -> None:
    """Raises ValueError for a directory that holds no model, or whose weights cannot be read.

    Only headers are read, and sizes: a file that was cut short is found at once.
    """
    if not place.is_dir():
        raise ValueError(
            f"{place} is no directory; give the one that holds config.json, smollm2, "
            "or owner/name for a model on the hub"
        )
    if not (place / "config.json").exists():
        raise ValueError(f"{place} holds no config.json, so it is no model directory")
    files = sorted(place.glob("*.safetensors"))
    if not files:
        pickles = sorted(f.name for pattern in PICKLES for f in place.glob(pattern))
        if pickles:
            raise ValueError(
                f"{place} holds its weights as a pickle ({', '.join(pickles)}), which can run code when "
                "read and is never opened; convert it to safetensors where you trust it"
            )
        raise ValueError(f"{place} holds no *.safetensors, so there are no weights to load")
    for index in place.glob("*.safetensors.index.json"):
        listed = set(read_json(index).get("weight_map", {}).values())
        if lost := listed - {file.name for file in files}:
            raise ValueError(f"{index} names files that are missing ({_some(lost)}); copy the model again")
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                continue
        except SafetensorError as error:
            raise ValueError(f"{file} is cut short or damaged ({error}); copy the model again") from error


def load_whole(source: str | Path, **options: Any) -> Any:
    """Returns the causal model of a directory or of a name on the hub, with every weight out of its files.

    Transformers only warns where it initialises what a file lacks, or leaves out what a model has no place
    for. A weight that is tied to another, or that files are known to leave out, is neither.

    Args:
        source: as ``from_pretrained`` takes it.
        **options: of ``from_pretrained``.

    Raises:
        ValueError: the weights do not fit the configuration, or cannot be read; the message names them.
        OSError: there is no such model.
    """
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name
            **options,
        )
    except SafetensorError as error:
        raise ValueError(f"the weights of {source} are damaged ({error}); copy the model again") from error
    _check_kind(source, model.config)
    wrong = {
        "missing": report["missing_keys"],
        "unknown": report["unexpected_keys"],
        "of another shape": [name for name, *_ in report["mismatched_keys"]],
    }
    found = [f"{len(names)} {what} ({_some(names)})" for what, names in wrong.items() if names]
    if found:
        raise ValueError(
            f"the weights in {source} do not fit its config.json, which describes a model of type "
            f"{model.config.model_type!r}; tensors: {', '.join(found)}; give a model whose weights and "
            "config.json were written together"
        )
    return model


def _check_kind(source: str | Path, config: Any) -> None:
    """Raises ValueError for a type that another architecture was saved with: names of weights may agree."""
    for name in config.architectures or ():
        made_for = getattr(getattr(transformers, name, None), "config_class", None)
        if made_for is not None and made_for.model_type != config.model_type:
            raise ValueError(
                f"config.json in {source} says model_type={config.model_type!r}, but its architecture {name} "
                f"is of type {made_for.model_type!r}; correct the one that is wrong"
            )


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:3]
    return ", ".join(first) + (", ..." if len(names) > len(first) else "")
