"""Drafting from a short list of frequent tokens: the head of a small model can cost more than its layers."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear
from transformers.modeling_utils import PreTrainedModel

from nonet.shapes import Tensors, check_whole

_TOKENS = Tensors(ids="...: whole")


def frequent_tokens(ids: Tensor, size: int) -> Tensor:
    """Returns the ``size`` most frequent tokens of a text, in rising order.

    Args:
        ids: tokens of any shape; those with negative numbers are passed over.
        size: how many; fewer come back when the text has fewer different ones.

    Raises:
        TypeError: ``ids`` is no tensor.
        ValueError: ``size`` is no whole number above zero, or there are no tokens.
    """
    _TOKENS.check(ids)
    if ids.is_meta:
        raise ValueError("ids must hold numbers; got a tensor on meta")
    check_whole(size=size)
    tokens, counts = ids[ids >= 0].unique(return_counts=True)
    if not len(tokens):
        raise ValueError("ids must hold a token to count, of a number from 0 up; got none")
    order = counts.argsort(descending=True, stable=True)[:size]
    return tokens[order].sort().values


class Shortlist:
    """The rows of a model's head that belong to a list of tokens, copied once.

    A draft that scores only these gives every other token the probability zero. What is generated stays
    exact, since verification asks no more of a draft than to know what it sampled from.

    Args:
        model: the model that drafts. Its head is read now: make a new list when it has been trained further.
        ids: tokens ``(n,)``, such as :func:`frequent_tokens` returns.

    Raises:
        ValueError: ``ids`` is empty or holds a token that the model does not have.

    Cost: ``2 n E`` operations a token in place of ``2 V E``, and n rows of memory.
    """

    def __init__(self, model: PreTrainedModel, ids: Tensor) -> None:
        head = model.get_output_embeddings()
        self.vocabulary = head.weight.shape[0]
        ids = ids.flatten().unique().to(head.weight.device)
        if not len(ids) or int(ids[0]) < 0 or int(ids[-1]) >= self.vocabulary:
            given = f"{int(ids[0])} to {int(ids[-1])}" if len(ids) else "none"
            raise ValueError(f"ids must hold tokens from 0 to {self.vocabulary - 1}; got {given}")
        self.ids = ids
        with torch.no_grad():
            self.weight = head.weight[ids].clone()
            bias = getattr(head, "bias", None)
            self.bias = None if bias is None else bias[ids].clone()

    def scores(self, hidden: Tensor) -> Tensor:
        """Returns scores ``(T, V)`` for hidden states ``(T, E)``, minus infinity off the list."""
        short = linear(hidden, self.weight, self.bias)
        full = short.new_full((len(hidden), self.vocabulary), -torch.inf)
        return full.index_copy_(1, self.ids, short)
