"""Prompts with their completions, and conversations, as training items padded to the longest of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nonet.data.chat import Message, turns
from nonet.data.tokenizer import end_id, lead_ids, prompt_ids

IGNORED = -100  # Transformers' sign for places that have no part in the loss

Item = dict[str, Tensor]


class Pairs(Dataset[Item]):
    """Items in an order that is another one in every pass.

    Args:
        items: of one pass, such as :func:`pair` and :func:`conversation` make.
        seed: of the order.
        count: how many items; those of one pass, in the order given, by default.
    """

    def __init__(self, items: Sequence[Item], seed: int = 0, count: int | None = None) -> None:
        self.items = items
        self.order = list(range(len(items))) if count is None else in_passes(len(items), count, seed)

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> Item:
        return self.items[self.order[index]]


def in_passes(size: int, count: int, seed: int) -> list[int]:
    """Returns ``count`` of the numbers below ``size``: all in each pass, in another order in every one."""
    random = np.random.default_rng(seed)
    order: list[int] = []
    while len(order) < count:
        order += random.permutation(size).tolist()
    return order[:count]


def pair(prompt: str, completion: str, tokenizer: Any, length: int) -> Item:
    """Returns a prompt and its completion, ended by the end of text; only the completion is learned.

    The prompt has the ids that it has when a model is asked to continue it. A pair of more than ``length``
    tokens loses the beginning of its prompt.

    Raises:
        ValueError: the completion alone is too long.
    """
    first = lead_ids(tokenizer)
    asked = prompt_ids(tokenizer, prompt)[len(first) :]
    answer = [*tokenizer(completion, add_special_tokens=False, verbose=False)["input_ids"], end_id(tokenizer)]
    room = length - len(first) - len(answer)
    if room < 1:
        raise ValueError(
            f"window={length} is too short for a completion of {len(answer)} tokens and a prompt; "
            f"give a longer one: {completion[:40]!r}"
        )
    return _item([([*first, *asked[-room:]], False), (answer, True)])


def conversation(messages: Sequence[Message], tokenizer: Any, length: int) -> Item:
    """Returns a conversation as the chat template writes it; only what the assistant says is learned.

    One of more than ``length`` tokens loses its first exchanges after the system's message.

    Raises:
        ValueError: a single exchange is too long, or the tokenizer has no chat template that serves.
    """
    system = [message for message in messages[:1] if message[0] == "system"]
    rest = list(messages[len(system) :])
    while True:
        stretches = turns(tokenizer, [*system, *rest])
        size = sum(len(ids) for ids, _ in stretches)
        if size <= length:
            return _item(stretches)
        if len(stretches) == 2:
            raise ValueError(
                f"window={length} is too short for an exchange of {size} tokens; give a longer one: "
                f"{messages[len(system)][1][:40]!r}"
            )
        said = next(i for i, message in enumerate(rest) if message[0] == "assistant")
        rest = rest[said + 1 :]


def _item(stretches: Sequence[tuple[Sequence[int], bool]]) -> Item:
    ids = [i for stretch, _ in stretches for i in stretch]
    labels = [i if learned else IGNORED for stretch, learned in stretches for i in stretch]
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


def padded(pad: int) -> Callable[[list[Item]], Item]:
    """Returns what makes a batch of items of different lengths, padded on the right with ``pad``."""

    def collate(items: list[Item]) -> Item:
        ids, labels = ([item[key] for item in items] for key in ("input_ids", "labels"))
        mask = [torch.ones_like(row) for row in ids]
        fill = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": fill(ids, batch_first=True, padding_value=pad),
            "labels": fill(labels, batch_first=True, padding_value=IGNORED),
            "attention_mask": fill(mask, batch_first=True),
        }

    return collate
