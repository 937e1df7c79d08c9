"""The module of a model that turns embeddings into hidden states, before which a prompt is put."""

from __future__ import annotations

import inspect

from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.generation.utils import ALL_CACHE_NAMES

from nonet.ecosystem import cache_name


def find_body(model: PreTrainedModel, who: str) -> tuple[str, nn.Module]:
    """Returns the path of a model's body, and the body.

    It is the innermost model around the input embedding that takes ``inputs_embeds``: some, such as OPT's,
    are called directly, and the models around them are not.

    Args:
        model: a model of Transformers.
        who: names prompt and model, for the message.

    Raises:
        ValueError: there is no such module, or the model generates with a memory that is no cache of tokens.
    """
    table = model.get_input_embeddings()
    modules = dict(model.named_modules())
    names = next(path for path, module in modules.items() if module is table).split(".")
    around = [".".join(names[:depth]) for depth in range(len(names))]
    bodies = [
        path
        for path in around
        if isinstance(modules[path], PreTrainedModel) and "inputs_embeds" in _takes(modules[path])
    ]
    if not bodies:
        raise ValueError(f"{who}: it takes no inputs_embeds")
    body = modules[bodies[-1]]
    memories = _takes(body).intersection(ALL_CACHE_NAMES)
    if memories and model.can_generate() and not (cache_name(body.forward) and _counts_tokens(model)):
        raise ValueError(
            f"{who}: the model keeps no keys and values, so its cache does not count the tokens it has seen"
        )
    return bodies[-1], body


def first_position(body: nn.Module) -> int:
    """Returns the position of the first token, which follows that of padding in models like RoBERTa."""
    for name, module in body.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0


def _takes(module: nn.Module) -> set[str]:
    return set(inspect.signature(module.forward).parameters)


def _counts_tokens(model: PreTrainedModel) -> bool:
    try:
        return DynamicCache(config=model.config).get_seq_length() == 0
    except ValueError:  # every layer keeps a state, whose size does not tell
        return False
