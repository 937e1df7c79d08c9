"""Putting a trained prompt into a Transformers model, and taking it out again."""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from torch import nn
from transformers import PreTrainedModel

from nonet.prompt.attentions import kv_shape
from nonet.prompt.config import PrefixTuning, PromptTuning, PTuning
from nonet.prompt.encoder import PrefixMLP, PromptEncoder, Table
from nonet.prompt.hooks import SoftPrompt
from nonet.prompt.prefix import Prefix, made_of
from nonet.prompt.proof import probe, probing
from nonet.prompt.starts import first_tokens, first_vectors, seeded
from nonet.prompt.vectors import InputPrompt

Model = TypeVar("Model", bound=PreTrainedModel)
Config = PromptTuning | PTuning | PrefixTuning


def add_prompt(model: Model, config: Config, tokenizer: Any | None = None) -> Model:
    r"""Puts a trained prompt into a model, freezes all else, and returns the model.

    ============  =============================================================================
    config        what stands in front of the text
    ============  =============================================================================
    PromptTuning  P vectors before its embeddings
    PTuning       the same, made by an encoder of other vectors
    PrefixTuning  P keys and values in every layer: :math:`\mathrm{softmax}(q [P_k; K]^T) [P_v; V]`
    ============  =============================================================================

    The model stays what it was: its arguments, outputs, ``generate`` and ``Trainer`` know of tokens only, and
    positions of tokens begin at P. The prompt's parameters are in float32 or better and lie in
    ``model.soft_prompt``, whose ``config`` is the one given here. :func:`remove_prompt` undoes everything.

    Args:
        model: a Transformers model that takes ``inputs_embeds``; for a prefix, one whose attention takes a
            cache and is computed by ``"eager"`` or ``"sdpa"``. A new head can be trained beside the prompt:
            ``model.score.requires_grad_(True)``.
        config: which prompt.
        tokenizer: for the starts that read text, and to sample tokens among the frequent ones.

    Raises:
        TypeError: the model is not one of Transformers', or ``config`` is none of the three.
        ValueError: the model has a prompt; it does not read this one, which is found out on a few tokens; or
            the start lacks a text or the tokenizer.

    Complexity: P more tokens in the first pass over a text, and P more keys for every query after it.
    Source: 2104.08691, section 2; 2103.10385, section 3; 2101.00190, section 4.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a Transformers PreTrainedModel; got {type(model).__name__}")
    if not isinstance(config, Config):
        allowed = "PromptTuning, PTuning or PrefixTuning"
        raise TypeError(f"config must be a {allowed}; got {type(config).__name__}")
    with seeded(config.seed):
        encoder = _encoder(model, config, tokenizer)
    return attach(model, config, encoder)


def attach(model: Model, config: Config, encoder: nn.Module) -> Model:
    """Puts a prompt that ``encoder`` gives into a model, as :func:`add_prompt` does."""
    if hasattr(model, "soft_prompt"):
        raise ValueError("model has a prompt already; remove_prompt takes it out")
    if model.config.is_encoder_decoder or getattr(model.config, "add_cross_attention", False):
        raise ValueError(f"model must not attend to an encoder; got {type(model).__name__}")
    weight = model.get_input_embeddings().weight
    encoder.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
    if isinstance(config, PrefixTuning):
        prompt: SoftPrompt = Prefix(model, config, encoder)
    else:
        prompt = InputPrompt(model, config, encoder)
    prompt.trained_before = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        with probing(model, prompt.who):
            prompt.prove(model, probe(model))
    except ValueError:
        prompt.detach(model)
        raise
    model.requires_grad_(False)
    model.soft_prompt = prompt
    return model


def remove_prompt(model: Model) -> Model:
    """Takes the prompt out of a model, which is then as it was before :func:`add_prompt`; returns the model.

    Raises:
        ValueError: the model has none, or was given other parameters since, such as those of LoRA.
    """
    prompt, before = soft_prompt(model), soft_prompt(model).trained_before
    own = {n: p for n, p in model.named_parameters() if not n.startswith("soft_prompt.")}
    if since := [name for name in own if name not in before]:
        raise ValueError(
            f"first remove what was added to the model after the prompt: {len(since)} parameters, "
            f"such as {since[0]}"
        )
    prompt.detach(model)
    del model.soft_prompt
    for name, parameter in own.items():
        parameter.requires_grad_(before[name])
    return model


def soft_prompt(model: nn.Module) -> SoftPrompt:
    """Returns the prompt of a model; raises ValueError where there is none."""
    prompt = getattr(model, "soft_prompt", None)
    if not isinstance(prompt, SoftPrompt):
        raise ValueError("model has no prompt; add_prompt puts one into it")
    return prompt


def _encoder(model: PreTrainedModel, config: Config, tokenizer: Any | None) -> nn.Module:
    """Returns the module that gives the prompt, with its first values."""
    weight = model.get_input_embeddings().weight
    width = weight.shape[1]
    if isinstance(config, PromptTuning):
        return Table(first_vectors(config, cast(nn.Embedding, model.get_input_embeddings()), tokenizer))
    if isinstance(config, PTuning):
        layers = config.layers if config.encoder == "lstm" else 0
        return PromptEncoder(config.length, width, config.hidden or width, layers)
    layers, heads, head_dim = kv_shape(model)
    out = layers * 2 * heads * head_dim
    if config.hidden is not None:
        return PrefixMLP(config.length, width, config.hidden, out)
    if config.start == "random":
        return Table(torch.randn(config.length, out))
    return Table(made_of(model, first_tokens(config, weight.shape[0], tokenizer)))
