"""The learned way from the primary to the secondary: one linear map a layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.cache_utils import Cache
from transformers.modeling_utils import PreTrainedModel

from nonet.tandem.cache import RollbackLayer, rollback_cache
from nonet.tandem.config import TandemConfig
from nonet.tandem.reading import evenly_spaced


class Projections(nn.ModuleList):
    r"""The maps :math:`F^{(j)}`, and where in the primary each of them reads.

    Args:
        primary: is read.
        secondary: reads.
        options: say where, what, and with which first values.

    Raises:
        ValueError: ``options.layers`` or ``options.start`` do not fit the models.
    """

    def __init__(self, primary: PreTrainedModel, secondary: PreTrainedModel, options: TandemConfig) -> None:
        depth, layers = primary.config.num_hidden_layers, secondary.config.num_hidden_layers
        depths = evenly_spaced(layers, depth) if options.layers is None else options.layers
        states = options.reading == "states"
        first = 0 if states else 1
        if len(depths) != layers or not all(first <= d <= depth for d in depths):
            raise ValueError(
                f"layers must hold {layers} numbers from {first} to {depth}, one for each layer of the "
                f"secondary; got {depths}"
            )
        if states:
            into, out = primary.config.hidden_size, secondary.config.hidden_size
        else:
            kinds = rollback_cache(primary, 1).layers
            if not all(isinstance(kinds[d - 1], RollbackLayer) for d in depths):
                raise ValueError(
                    "reading='keys_values' needs layers of the primary with full attention; "
                    f"{depths} of {type(primary).__name__} name others; use reading='states'"
                )
            into, out = (2 * heads * width for heads, width in (_heads(primary), _heads(secondary)))
        if options.start == "identity" and into != out:
            raise ValueError(
                f"start='identity' needs equal widths; the primary gives {into}, the secondary takes {out}"
            )
        like = {"device": secondary.device, "dtype": secondary.dtype}
        super().__init__(nn.Linear(into, out, bias=False, **like) for _ in depths)
        self.depths, self._states, self._head_width = tuple(depths), states, _heads(secondary)[1]
        generator = torch.Generator().manual_seed(options.seed)
        for weight in self.parameters():
            if options.start == "identity":
                nn.init.eye_(weight)
            else:
                weight.data.copy_(torch.randn(out, into, generator=generator) * into**-0.5)

    def pick(self, found: Mapping[int, Tensor], cache: Cache, start: int, count: int) -> list[Tensor]:
        """Returns what the primary knows of ``count`` tokens, ``(B, count, width)`` for each layer.

        Args:
            found: states of its last pass, which began at token ``start``.
            cache: its cache.
            start: the first of the tokens.
            count: how many.
        """
        if self._states:
            if missing := sorted(set(self.depths) - set(found)):
                raise ValueError(
                    "the primary's layers are not called one by one (as reversible ones are not), so their "
                    f"states at {missing} cannot be read; use reading='keys_values' or another primary"
                )
            return [found[depth][:, :count] for depth in self.depths]
        layers = [cache.layers[depth - 1] for depth in self.depths]
        return [
            torch.cat([_side_by_side(x.narrow(2, start, count)) for x in (a.keys, a.values)], -1)
            for a in layers
        ]

    def forward(self, picked: Sequence[Tensor]) -> list[Tensor]:
        """Returns each layer's tensor, mapped."""
        weights = self.parameters()
        return [linear(x.to(weight.dtype), weight) for weight, x in zip(weights, picked, strict=True)]

    def split(self, both: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values ``(B, G, T, D)`` that stand side by side in ``both`` (B, T, 2 G D)."""
        heads = both.unflatten(-1, (2, -1, self._head_width)).permute(2, 0, 3, 1, 4)
        return heads[0], heads[1]


def _heads(model: PreTrainedModel) -> tuple[int, int]:
    """Returns the number of key heads and their width."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    return heads, getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _side_by_side(x: Tensor) -> Tensor:
    """Returns ``(B, T, G D)`` for ``(B, G, T, D)``."""
    return x.transpose(1, 2).flatten(2)
