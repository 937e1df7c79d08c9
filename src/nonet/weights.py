"""Whether the files of a model hold its weights: all of them, no others, and undamaged."""

from __future__ import annotations

import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from nonet.files import read_json

_SIZES = ("_layers", "_heads", "_size", "_dim", "_experts", "_rank")
_CHEAP = 2**16  # the length of a window, such as window_size, may well be larger than the weights
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
    config = read_json(place / "config.json")
    _refuse_code(place, config)
    check_index(place)
    tensors = numbers = 0
    for file in files:
        _refuse_elsewhere(place, file)
        try:
            with safe_open(file, framework="pt") as opened:
                shapes = [opened.get_slice(name).get_shape() for name in opened.keys()]  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file} is cut short or damaged ({error}); copy the model again") from error
        tensors, numbers = tensors + len(shapes), numbers + sum(map(math.prod, shapes))
    _refuse_more(place / "config.json", config, tensors, numbers)


def check_index(place: Path) -> None:
    """Raises ValueError where a list of the files of a model's weights names any but safetensors beside it.

    Whatever such a list names, Transformers reads; what does not end in ``.safetensors`` as a pickle.
    """
    for index in place.glob("*.safetensors.index.json"):
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
            raise ValueError(
                f"{index} must say under weight_map in which file each tensor is; copy the model again"
            )
        names = set(listed.values())
        if wrong := {name for name in names if not name.endswith(".safetensors") or Path(name).name != name}:
            raise ValueError(
                f"{index} names {_some(wrong)}; weights are read from *.safetensors beside it alone, since "
                "other files may run code when they are read"
            )
        if lost := {name for name in names if not (place / name).is_file()}:
            raise ValueError(f"{index} names files that are missing ({_some(lost)}); copy the model again")
        for name in names:
            _refuse_elsewhere(place, place / name)


def _refuse_elsewhere(place: Path, file: Path) -> None:
    """Raises ValueError for a link out of a model's directory, unless to the files of the hub's cache."""
    if not file.is_file():
        raise ValueError(f"{file} is no file that can be read; copy the model again")
    target, home = file.resolve(), place.resolve()
    cache = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (target.is_relative_to(home) or target.is_relative_to(cache)):
        raise ValueError(f"{file} is a link to {target}, out of its directory; put the file itself there")


def _refuse_code(place: Path, config: dict[str, Any]) -> None:
    """Raises ValueError for a model that only code in its own directory could run."""
    kind = config.get("model_type")
    if config.get("auto_map") and not (isinstance(kind, str) and kind in CONFIG_MAPPING):
        raise ValueError(
            f"{place / 'config.json'} asks to run code of its own (auto_map) for a model of type {kind!r}, "
            "which nonet never does; give a model of a type that Transformers has"
        )


def _refuse_more(file: Path, config: dict[str, Any], tensors: int, numbers: int) -> None:
    """Raises ValueError for sizes that the weights cannot have, before a model is made that large."""
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for name, size in part.items():
            most = tensors if name.endswith("_layers") else max(numbers, _CHEAP)
            if name.endswith(_SIZES) and isinstance(size, int) and size > most:
                raise ValueError(
                    f"{file} says {name}={size}, but the weights are {tensors} tensors of {numbers:,} "
                    "numbers; copy the model again"
                )


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
