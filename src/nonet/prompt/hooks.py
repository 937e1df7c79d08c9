"""What both kinds of trained prompt share: a module beside the model, and hooks on the model's body."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from nonet.prompt.body import find_body, first_position

Arguments = dict[str, Any]


class SoftPrompt(nn.Module):
    """A trained prompt, the submodule ``soft_prompt`` of its model.

    Hooks are methods of this module, so that a copy of the model has a prompt of its own.

    Attributes:
        config: how it was made.
        encoder: called, returns the prompt, a matrix with P rows.
        trained_before: for each of the model's parameters, whether it was trainable without the prompt.
        path: of the model's body, see :func:`nonet.prompt.body.find_body`.
    """

    def __init__(self, model: PreTrainedModel, config: Any, encoder: nn.Module) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self.trained_before: dict[str, bool] = {}
        self.handles: list[Any] = []
        self.who = f"{type(config).__name__} on {type(model).__name__}"
        self.path, body = find_body(model, self.who)
        self.names = tuple(inspect.signature(body.forward).parameters)
        self.first = first_position(body)

    @property
    def length(self) -> int:
        """P, the number of virtual tokens."""
        return self.config.length

    def attach(self, model: PreTrainedModel) -> None:
        """Puts the prompt into the model."""
        hook = model.get_submodule(self.path).register_forward_pre_hook(self.before, with_kwargs=True)
        self.handles.append(hook)

    def detach(self, model: PreTrainedModel) -> None:
        """Takes the prompt out of the model."""
        while self.handles:
            self.handles.pop().remove()

    def before(self, body: Any, args: tuple[Any, ...], kwargs: Arguments) -> tuple[tuple[()], Arguments]:
        """Returns the arguments of the model's body, as they are when a prompt stands before the tokens."""
        raise NotImplementedError

    def prove(self, model: PreTrainedModel, ids: Tensor) -> None:
        """Lets a model without the prompt read a few tokens ``(1, n)``, and attaches the prompt.

        Raises:
            ValueError: the model does not read a prompt as it reads what stands before its tokens.
        """
        raise NotImplementedError


def named(names: tuple[str, ...], args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
    """Returns the arguments of a call by their names."""
    return dict(zip(names, args, strict=False)) | kwargs
