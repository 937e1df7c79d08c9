"""Where the numbers of a prompt come from: a table that is trained itself, or an encoder.

A prompt is a matrix with a row for each of its P virtual tokens. Calling one of these modules returns it.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

_ALL = slice(None)


class Table(nn.Module):
    """The prompt itself, trained directly."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(values)

    def forward(self, columns: slice = _ALL) -> Tensor:
        """Returns some columns of the prompt, ``(P, columns)``."""
        return self.weight[:, columns]


class PrefixMLP(nn.Module):
    r"""A prefix as :math:`W_2 \tanh(W_1 p_i + b_1) + b_2` of smaller trained vectors :math:`p_i`.

    Source: Li and Liang 2021 (2101.00190), section 4.3.
    """

    def __init__(self, length: int, width: int, hidden: int, out: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(length, width)
        self.first = nn.Linear(width, hidden)
        self.last = nn.Linear(hidden, out)

    def forward(self, columns: slice = _ALL) -> Tensor:
        """Returns some columns of the prefix, ``(P, columns)``; the others are not computed."""
        h = torch.tanh(self.first(self.embedding.weight))
        return linear(h, self.last.weight[columns], self.last.bias[columns])


class PromptEncoder(nn.Module):
    """The encoder of P-tuning: what stands at one place of the prompt can depend on the other places.

    Source: Liu et al. 2021 (2103.10385), section 3.2, with the layers that PEFT gives it.
    """

    def __init__(self, length: int, width: int, hidden: int, lstm_layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(length, width)
        self.lstm = None
        sizes = [width, hidden, hidden, width]
        if lstm_layers:
            self.lstm = nn.LSTM(width, hidden, lstm_layers, bidirectional=True, batch_first=True)
            sizes = [2 * hidden, 2 * hidden, width]
        layers: list[nn.Module] = []
        for before, behind in pairwise(sizes):
            layers += [nn.Linear(before, behind), nn.ReLU()]
        self.mlp = nn.Sequential(*layers[:-1])

    def forward(self) -> Tensor:
        """Returns the prompt ``(P, E)``."""
        x = self.embedding.weight
        with torch.autocast(x.device.type, enabled=False):  # no processor has an LSTM in float16
            if self.lstm is not None:
                x = self.lstm(x[None])[0][0]
            return self.mlp(x)
