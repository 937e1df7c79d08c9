"""Learned positions from two small tables instead of one large one."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn

from nonet.reformer.config import AxialConfig
from nonet.slots import Dims, Position


class AxialPositions(Position):
    r"""Position p is a place on a grid: a vector for its row beside a vector for its column.

    .. math:: e_p = [a_{\lfloor p / n_2 \rfloor};\; b_{p \bmod n_2}]

    Args:
        dims: the model around it; ``hidden`` and ``max_length`` matter.
        options: :class:`AxialConfig`.

    Raises:
        ValueError: the widths do not add up to ``dims.hidden``.

    Cost: ``n_1 E_1 + n_2 E_2`` parameters for ``n_1 n_2`` positions, and any length up to that.
    Source: Kitaev et al. 2020 (2001.04451), section 4, "axial position embeddings".
    """

    def __init__(self, dims: Dims, options: AxialConfig) -> None:
        super().__init__(dims, options)
        rows = isqrt(dims.max_length - 1) + 1
        self.shape = options.shape or (rows, -(-dims.max_length // rows))
        self.places = self.shape[0] * self.shape[1]
        widths = options.widths or (dims.hidden // 2, dims.hidden - dims.hidden // 2)
        if sum(widths) != dims.hidden:
            raise ValueError(f"widths={widths} must add up to the width of the model, {dims.hidden}")
        self.row, self.column = (
            nn.Parameter(torch.empty(n, width)) for n, width in zip(self.shape, widths, strict=True)
        )
        self.init_weights(0.02)

    def init_weights(self, std: float) -> None:
        """Draws both tables from a normal distribution."""
        nn.init.normal_(self.row, std=std)
        nn.init.normal_(self.column, std=std)

    def embed(self, places: Tensor) -> Tensor:
        """Returns ``(B, T, E)`` for ``places`` ``(B, T)``.

        Raises:
            ValueError: a place lies beyond the grid.
        """
        rows, columns = self.shape
        if not torch.compiler.is_compiling() and (last := int(places.max())) >= rows * columns:
            raise ValueError(
                f"a context of {last + 1} tokens is beyond the {rows * columns} places of the axial table of "
                f"{rows} x {columns}; shorten it, or choose a larger AxialConfig.shape"
            )
        row, column = self.row[places // columns], self.column[places % columns]
        return torch.cat([row, column], dim=-1)
