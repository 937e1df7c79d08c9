"""Windows of equal length out of a long array of tokens, to train on and to measure with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from nonet.shapes import check_positive


class Windows(Dataset[dict[str, Tensor]]):
    """Item i is ``lead`` and the tokens from ``starts[i]`` on, as ``input_ids`` and as ``labels``.

    Args:
        tokens: ids ``(tokens,)``, memory-mapped or not.
        length: tokens of a window, T, those of the lead among them.
        starts: first places ``(windows,)``.
        lead: ids that every window begins with, as every prompt does.

    Items are int64 of shape ``(T,)``; the two are one tensor, since the model shifts its labels.
    """

    def __init__(self, tokens: NDArray, length: int, starts: NDArray, lead: Sequence[int] = ()) -> None:
        self.tokens, self.length, self.starts, self.lead = tokens, length, starts, list(lead)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = int(self.starts[index])
        own = self.tokens[start : start + self.length - len(self.lead)].astype(np.int64)
        window = torch.tensor([*self.lead, *own]) if self.lead else torch.from_numpy(own)
        return {"input_ids": window, "labels": window}


def training_windows(
    tokens: NDArray, length: int, seed: int = 0, count: int | None = None, lead: Sequence[int] = ()
) -> Windows:
    """Returns ``count`` windows in a random order that depends on nothing but the arguments.

    Each pass over the text is cut at another phase, and shows its windows, which do not overlap, in
    another order; as many passes are made as ``count`` needs.

    Args:
        tokens: ids ``(tokens,)``.
        length: tokens of a window, T.
        seed: of phases and orders.
        count: how many windows; those of one pass by default.
        lead: ids that every window begins with; see :class:`EncodedCorpus`.

    Raises:
        ValueError: the text is shorter than one window, or a number is not above zero.

    Complexity: 8 bytes a window; an item reads T tokens.
    """
    stride = _stride(tokens, length, lead)
    check_positive(count=count)
    random = np.random.default_rng(seed)
    passes: list[NDArray] = []
    found = 0
    while found < (count or 1):
        phase = random.integers(min(stride, len(tokens) - stride + 1))
        passes.append(phase + stride * random.permutation((len(tokens) - phase) // stride))
        found += len(passes[-1])
    return Windows(tokens, length, np.concatenate(passes)[:count], lead)


def validation_windows(tokens: NDArray, length: int, count: int, lead: Sequence[int] = ()) -> Windows:
    """Returns at most ``count`` windows that do not overlap, in order, spread evenly over the text.

    Args:
        tokens: ids ``(tokens,)``.
        length: tokens of a window, T.
        count: the most windows.
        lead: ids that every window begins with; see :class:`EncodedCorpus`.

    Raises:
        ValueError: the text is shorter than one window, or a number is not above zero.
    """
    stride = _stride(tokens, length, lead)
    check_positive(count=count)
    whole = len(tokens) // stride
    count = min(count, whole)
    return Windows(tokens, length, stride * (np.arange(count, dtype=np.int64) * whole // count), lead)


def _stride(tokens: NDArray, length: int, lead: Sequence[int]) -> int:
    """Returns how many tokens of the text a window holds."""
    check_positive(length=length)
    stride = length - len(lead)
    if stride < 1:
        raise ValueError(f"length={length} has no room for a text after the {len(lead)} ids that precede it")
    if len(tokens) < stride:
        raise ValueError(
            f"the text has {len(tokens)} tokens and one window needs {stride} (length={length}); "
            "give a longer text or a shorter length"
        )
    return stride
