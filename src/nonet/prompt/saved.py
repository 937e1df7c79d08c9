"""Prompts in the form in which PEFT keeps them on disk: a configuration, and one matrix.

What made the numbers does not matter to a model that reads them: an encoder of P-tuning, or the MLP of a
prefix, is left out, as PEFT does, and what is read can be used or trained further directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from nonet.prompt.attentions import kv_shape
from nonet.prompt.config import PrefixTuning, PromptTuning, PTuning
from nonet.prompt.encoder import Table
from nonet.prompt.soft import Config, Model, attach, soft_prompt

KEY = "prompt_embeddings"
KINDS: dict[str, type[Config]] = {
    "PROMPT_TUNING": PromptTuning,
    "P_TUNING": PTuning,
    "PREFIX_TUNING": PrefixTuning,
}

# Fields that say how a prompt began or was trained, or nothing of the model; they change no output.
_IDLE = {
    "auto_mapping",
    "base_model_name_or_path",
    "encoder_dropout",
    "encoder_hidden_size",
    "encoder_num_layers",
    "encoder_reparameterization_type",
    "inference_mode",
    "init_weights",
    "num_virtual_tokens",
    "peft_type",
    "peft_version",
    "prefix_projection",
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "revision",
    "tokenizer_kwargs",
    "tokenizer_name_or_path",
}


def to_peft(model: PreTrainedModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns the prompt of a causal model as PEFT's configuration and tensors.

    Returns:
        what ``adapter_config.json`` holds, and ``{"prompt_embeddings": (P, E)}``, for a prefix
        ``(P, layers * 2 * G * D)``.

    Raises:
        ValueError: the model has no prompt, is no causal language model, or other parameters are trained too,
            which this format has no place for.
    """
    prompt = soft_prompt(model)
    config = prompt.config
    if not model.can_generate():
        raise ValueError(f"only prompts of causal language models are written; got {type(model).__name__}")
    beside = [n for n, p in model.named_parameters() if p.requires_grad and not n.startswith("soft_prompt.")]
    if beside:
        raise ValueError(f"the file has no place for what is trained beside the prompt: {', '.join(beside)}")
    with torch.no_grad():
        values = prompt.encoder().detach().to("cpu", copy=True).contiguous()
    kind = next(kind for kind, of in KINDS.items() if isinstance(config, of))
    written = {
        "auto_mapping": None,
        "base_model_name_or_path": model.config.name_or_path or None,
        "inference_mode": True,
        "modules_to_save": None,
        "num_transformer_submodules": 1,
        "num_virtual_tokens": config.length,
        "peft_type": kind,
        "revision": None,
        "task_type": "CAUSAL_LM",
        **_shape(model, kind),
    }
    if isinstance(
        config, PromptTuning
    ):  # PEFT wants a tokenizer's name for a start by text, so none is named
        written |= {"prompt_tuning_init": "RANDOM", "prompt_tuning_init_text": None}
        written |= {"tokenizer_name_or_path": None, "tokenizer_kwargs": None}
    elif isinstance(config, PTuning):
        written |= {
            "encoder_reparameterization_type": config.encoder.upper(),
            "encoder_hidden_size": config.hidden or values.shape[1],
            "encoder_num_layers": config.layers,
            "encoder_dropout": 0.0,
        }
    else:
        written |= {"prefix_projection": False, "encoder_hidden_size": config.hidden, "init_weights": None}
    return written, {KEY: values}


def from_peft(model: Model, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Model:
    """Puts a prompt that PEFT or :func:`to_peft` wrote into a model, trainable directly; returns the model.

    Args:
        model: a causal language model without a prompt.
        config: what ``adapter_config.json`` holds.
        tensors: what ``adapter_model.safetensors`` holds.

    Raises:
        ValueError: a field or tensor is missing, unknown, or has a value that is not served; the message
            names it.
    """
    kind = config.get("peft_type")
    if kind not in KINDS:
        raise ValueError(f"peft_type={kind!r} is no prompt that is read; choose from {', '.join(KINDS)}")
    served = {
        "task_type": (None, "CAUSAL_LM"),
        "num_transformer_submodules": (None, 1),
        **{name: (None, value) for name, value in _shape(model, kind).items()},
    }
    for name, value in config.items():
        if name in served and value not in served[name]:
            allowed = " or ".join(map(repr, served[name]))
            raise ValueError(f"{name}={value!r} in the file is not served here; it must be {allowed}")
        if name not in served and name not in _IDLE and value:
            raise ValueError(f"{name}={value!r} in the file is not known here, and could change the outputs")
    if set(tensors) != {KEY}:
        raise ValueError(f"the file must hold the tensor {KEY} alone; got {', '.join(tensors) or 'none'}")
    values = tensors[KEY]
    shape = (config.get("num_virtual_tokens"), _columns(model, kind))
    if tuple(values.shape) != shape:
        raise ValueError(f"{KEY} must have the shape {shape} for this model; got {tuple(values.shape)}")
    if not values.is_floating_point():
        raise ValueError(f"{KEY} must be of a floating dtype; got {values.dtype}")
    return attach(model, KINDS[kind](length=len(values)), Table(values.detach().clone()))


def _shape(model: PreTrainedModel, kind: str) -> dict[str, int]:
    """Returns the fields by which PEFT knows the sizes of a model."""
    if kind == "PREFIX_TUNING":
        layers, heads, head_dim = kv_shape(model)
        return {"num_layers": layers, "num_attention_heads": heads, "token_dim": heads * head_dim}
    config = model.config.get_text_config()
    width = model.get_input_embeddings().weight.shape[1]
    return {
        "num_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "token_dim": width,
    }


def _columns(model: PreTrainedModel, kind: str) -> int:
    """Returns the columns of the one matrix."""
    shape = _shape(model, kind)
    return shape["token_dim"] * (2 * shape["num_layers"] if kind == "PREFIX_TUNING" else 1)
