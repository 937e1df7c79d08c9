"""What adapters do when the vocabulary of their model is resized.

``resize_token_embeddings`` of Transformers changes the input embedding in place and puts a new output
embedding where the old one was. While a model has adapters, the object's method is one that takes them along.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from nonet.lora.layer import carriers, put_on
from nonet.lora.state import state_of, use

_METHOD = "resize_token_embeddings"


def follow_resizing(model: nn.Module) -> None:
    """Lets every resizing of a model's vocabulary take its adapters along."""
    for part in model.modules():
        if hasattr(type(part), _METHOD):
            setattr(part, _METHOD, functools.partial(resized, model, part))


def forget_resizing(model: nn.Module) -> None:
    """Gives a model its own method back."""
    for part in model.modules():
        vars(part).pop(_METHOD, None)


@torch.no_grad()
def resized(model: nn.Module, part: Any, *args: Any, **kwargs: Any) -> Any:
    """Resizes the vocabulary of a model or of a part of it; returns the input embedding.

    Factors get rows or columns of zeros for new tokens, which so begin as in the bare model, and lose those
    of tokens that are gone; copies of biases and of modules in full take the bare model's. Parameters stay
    the same objects; an optimiser has to be made again, as for a bare model.

    Raises:
        ValueError: an adapter is merged, or an embedding with an adapter has hooks, which would be moved.
    """
    state = state_of(model)
    if state.merged is not None:
        raise ValueError(f"adapter {state.merged!r} is merged; call unmerge_lora before {_METHOD}")
    ends = [part.get_input_embeddings(), part.get_output_embeddings()]
    before = {path: module for path, module in carriers(model) if any(module is end for end in ends)}
    if hooked := [path for path, module in before.items() if "forward" in vars(module)]:
        raise ValueError(f"first remove the hooks of {hooked[0]}, which hold the adapters' forward pass")
    gains = {
        (path, name): factors.gain(module.lora_matrix())
        for path, module in before.items()
        for name, factors in module.lora.adapters()
        if factors.magnitude is not None
    }
    selected = state.selected
    use(model, None)
    try:
        return getattr(type(part), _METHOD)(part, *args, **kwargs)
    finally:
        for path, module in before.items():
            now = put_on(model.get_submodule(path))
            now.lora = module.lora
            for name, factors in now.lora.adapters():
                factors.resize(now.lora_matrix(), now.lora_embedding, gains.get((path, name)))
        for copies in state.trained.values():
            for path, copy in copies.items():
                bare = model.get_parameter(path)
                if copy.shape != bare.shape:
                    kept = min(len(copy), len(bare))
                    copy.data, copy.grad = torch.cat([copy[:kept], bare[kept:]]), None
        use(model, selected)
