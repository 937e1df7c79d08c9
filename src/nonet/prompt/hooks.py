"""What both kinds of trained prompt share: a module beside the model, and hooks inside of it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn
from transformers import PreTrainedModel

Arguments = dict[str, Any]


class SoftPrompt(nn.Module):
    """A trained prompt, the submodule ``soft_prompt`` of its model.

    Hooks are methods of this module, so that a copy of the model has a prompt of its own.

    Attributes:
        config: how it was made.
        encoder: called, returns the prompt, a matrix with P rows.
        trained_before: names of the model's parameters that were trainable without the prompt.
    """

    def __init__(self, model: PreTrainedModel, config: Any, encoder: nn.Module) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self.trained_before: set[str] = set()
        self.handles: list[Any] = []
        self.names = tuple(inspect.signature(model.base_model.forward).parameters)
        self.first = _first_position(model.base_model)

    @property
    def length(self) -> int:
        """P, the number of virtual tokens."""
        return self.config.length

    def attach(self, model: PreTrainedModel) -> None:
        """Puts the prompt into the model."""
        hook = model.base_model.register_forward_pre_hook(self.before, with_kwargs=True)
        self.handles.append(hook)

    def detach(self, model: PreTrainedModel) -> None:
        """Takes the prompt out of the model."""
        while self.handles:
            self.handles.pop().remove()

    def before(self, body: Any, args: tuple[Any, ...], kwargs: Arguments) -> tuple[tuple[()], Arguments]:
        """Returns the arguments of the model's body, as they are when a prompt stands before the tokens."""
        raise NotImplementedError


def named(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
    """Returns the arguments of a call by their names."""
    return dict(zip(names, args, strict=False)) | kwargs


def _first_position(body: nn.Module) -> int:
    """Returns the position of the first token, which is behind that of padding in models like RoBERTa."""
    for name, module in body.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0
