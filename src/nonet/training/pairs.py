"""Prompts with their completions as training items, padded to the longest of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

IGNORED = -100  # Transformers' sign for places that have no part in the loss


class Pairs(Dataset[dict[str, Tensor]]):
    """Item i is a prompt and its completion, ended by the end of text; only the completion is learned.

    A pair longer than the window loses the beginning of its prompt.

    Args:
        pairs: prompts with completions.
        tokenizer: of the model.
        length: the most tokens of an item.
        seed: of the order, which is another one in every pass.
        count: how many items; those of one pass, in the order given, by default.

    Raises:
        ValueError: a completion alone is longer than the window.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[str, str]],
        tokenizer: Any,
        length: int,
        seed: int = 0,
        count: int | None = None,
    ) -> None:
        self.items = [_item(prompt, completion, tokenizer, length) for prompt, completion in pairs]
        self.order = list(range(len(pairs))) if count is None else in_passes(len(pairs), count, seed)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.items[self.order[index]]


def in_passes(size: int, count: int, seed: int) -> list[int]:
    """Returns ``count`` of the numbers below ``size``: all in each pass, in another order in every one."""
    random = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < count:
        order += random.permutation(size).tolist()
    return order[:count]


def _item(prompt: str, completion: str, tokenizer: Any, length: int) -> dict[str, Tensor]:
    asked = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    if len(answer) >= length:
        raise ValueError(
            f"a completion has {len(answer)} tokens and the window only {length}; give a longer window: "
            f"{completion[:40]!r}"
        )
    asked = asked[max(0, len(asked) + len(answer) - length) :]
    ids = torch.tensor(asked + answer)
    return {"input_ids": ids, "labels": torch.tensor([IGNORED] * len(asked) + answer)}


def padded(pad: int) -> Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]:
    """Returns what makes a batch of items of different lengths, padded on the right with ``pad``."""

    def collate(items: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        ids, labels = ([item[key] for item in items] for key in ("input_ids", "labels"))
        mask = [torch.ones_like(row) for row in ids]
        fill = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": fill(ids, batch_first=True, padding_value=pad),
            "labels": fill(labels, batch_first=True, padding_value=IGNORED),
            "attention_mask": fill(mask, batch_first=True),
        }

    return collate
