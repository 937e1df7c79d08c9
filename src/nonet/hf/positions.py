"""How many tokens a model has positions for."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from nonet.slots import Position

# What Transformers calls the tables of its causal models; a rotation needs none.
_TABLE = re.compile(r"(wpe|embed_positions|positions?_embed(ding)?s?|pos_encoding)$")


def room(model: Any) -> int | None:
    """Returns the most tokens that a model reads at once, or None where no table of positions ends.

    A soft prompt takes up places of the table; what it leaves is returned. ``max_position_embeddings`` alone
    says nothing: models that turn queries and keys have it too, and read on beyond it.
    """
    ends = [end for name, module in model.named_modules() if (end := _end(name, module)) is not None]
    ends += [len(table) for name, table in model.named_buffers() if _TABLE.search(name) and table.dim() == 2]
    if model.config.model_type == "mpt":  # makes its slopes for so many tokens
        ends.append(model.config.max_seq_len)
    prompt = getattr(model, "soft_prompt", None)
    return min(ends) - (0 if prompt is None else prompt.length) if ends else None


def check_room(model: Any, tokens: int, option: str) -> None:
    """Raises ValueError when ``option`` asks for more tokens than the model has positions for."""
    most = room(model)
    if most is not None and tokens > most:
        prompt = getattr(model, "soft_prompt", None)
        beside = "" if prompt is None else f", beside the {prompt.length} virtual tokens of its prompt"
        raise ValueError(
            f"{option}={tokens} is more than {model.config.name_or_path or 'the model'} has positions for: "
            f"its table ends after {most} tokens{beside}; give {option}={most} or less"
        )


def _end(name: str, module: nn.Module) -> int | None:
    if isinstance(module, Position):
        return module.places
    if not isinstance(module, nn.Embedding) or not _TABLE.search(name):
        return None
    first = getattr(module, "offset", None)  # rows that no position uses, as BART and OPT have
    if first is None and type(module) is nn.Embedding and module.padding_idx is not None:
        first = module.padding_idx + 1  # as RoBERTa has
    return module.num_embeddings - (first or 0)
