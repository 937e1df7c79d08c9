"""What fills the position slot: two methods and the three baselines that they are measured against.

None of them keeps a tensor that a checkpoint would not hold: angles and slopes are made from a few Python
numbers in every forward pass, once for all layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nonet.position.api import alibi_slopes, apply_rotary, rotary_angles, rotary_frequencies, sinusoidal
from nonet.position.config import AlibiConfig, RotaryConfig
from nonet.slots import Dims, Lengths, Position


class Turn:
    """The rotation of one forward pass; angles are kept by the identity of ``places``, for all layers.

    Args:
        head_dim: D.
        options: :class:`RotaryConfig`.
        length: tokens in the whole context, of all rows or of each row ``(B,)``.
    """

    def __init__(self, head_dim: int, options: RotaryConfig, length: Lengths) -> None:
        self.head_dim, self.options = head_dim, options
        self.of_whole = options.scaling is not None and options.scaling.of_whole
        self.lengths: list[int | None] = [None]
        if self.of_whole:
            self.lengths = length.tolist() if isinstance(length, Tensor) else [length]
        self._kept: list[tuple[Tensor, tuple[Tensor, Tensor]]] = []

    def __call__(self, x: Tensor, places: Tensor) -> Tensor:
        """Returns ``x`` (B, n, L, D) turned for tokens at ``places`` (B or 1, L)."""
        return apply_rotary(x, *self._angles(x, places), self.options.interleaved)

    def _angles(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        for known, angles in self._kept:
            if known is places and angles[0].dtype == dtype:
                return angles
        angles = self._made(places, dtype)
        # The first are the queries', which every layer asks for; the latest may be the keys'.
        self._kept = [*self._kept[:1], (places, angles)]
        return angles

    def _made(self, places: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        rows = []
        for row, length in enumerate(self.lengths):
            inv_freq, factor = rotary_frequencies(
                self.head_dim, self.options, length=length, dtype=dtype, device=places.device
            )
            mine = places if len(self.lengths) == 1 or len(places) == 1 else places[row : row + 1]
            rows.append(rotary_angles(inv_freq, mine, factor))
        cos, sin = zip(*rows, strict=True)
        return (cos[0], sin[0]) if len(rows) == 1 else (torch.cat(cos), torch.cat(sin))


class RotaryPosition(Position):
    """RoPE: queries and keys turn by angles that grow with their places.

    Args:
        dims: the model around it.
        options: :class:`RotaryConfig`.

    Cost: ``6 B (H + G) T d / 2`` operations a layer for d dims that turn; no parameters.
    """

    def __init__(self, dims: Dims, options: RotaryConfig) -> None:
        super().__init__(dims, options)
        rotary_frequencies(dims.head_dim, options, device="cpu")  # options that do not fit fail here

    def rotation(self, length: Lengths) -> Turn:
        """Returns the rotation for one forward pass over a context of ``length`` tokens."""
        return Turn(self.dims.head_dim, self.options, length)


class AlibiPosition(Position):
    """ALiBi: scores fall with distance, in each head by a slope of its own.

    Args:
        dims: the model around it; ``max_length`` is the length that it is trained on.
        options: :class:`AlibiConfig`.

    Cost: none beside attention's; no parameters.
    """

    options: AlibiConfig

    def slopes(self, length: Lengths) -> Tensor:
        """Returns the slopes for a context of ``length`` tokens, in float32 on the CPU.

        They are ``(H,)``; where rows have lengths of their own and slopes depend on these, ``(B, H)``.
        """
        heads, trained = self.dims.heads, self.dims.max_length
        if not self.options.interpolate:
            return alibi_slopes(heads)
        if isinstance(length, int):
            return alibi_slopes(heads, length=length, train_length=trained)
        return torch.stack([alibi_slopes(heads, length=n, train_length=trained) for n in length.tolist()])


class SinusoidalPosition(Position):
    """Waves added to tokens, for contexts of any length.

    The paper multiplies tokens by ``sqrt(E)``, which gives them a standard deviation of 1 beside waves of
    amplitude 1. Here the waves are multiplied instead, by a gain that starts at the tokens' standard
    deviation and is learned.

    Args:
        dims: the model around it.
        options: none.

    Cost: ``B T E`` operations; one parameter.
    """

    def __init__(self, dims: Dims, options: Any = None) -> None:
        super().__init__(dims, options)
        if dims.hidden % 2:
            raise ValueError(f"sinusoidal positions need an even hidden size; got {dims.hidden}")
        self.gain = nn.Parameter(torch.full((1,), 0.02))

    def init_weights(self, std: float) -> None:
        """Starts the gain at the standard deviation of the tokens."""
        nn.init.constant_(self.gain, std)

    def embed(self, places: Tensor) -> Tensor:
        """Returns ``(B or 1, T, E)`` in the dtype of the model's weights."""
        dtype = torch.promote_types(self.gain.dtype, torch.float32)
        return self.gain * sinusoidal(places, self.dims.hidden, dtype=dtype).to(self.gain.dtype)


class LearnedPosition(Position):
    """A table with a learned vector for each place, which ends at the model's length.

    Args:
        dims: the model around it; the table has ``max_length`` rows.
        options: none.

    Cost: ``max_length * E`` parameters.
    """

    def __init__(self, dims: Dims, options: Any = None) -> None:
        super().__init__(dims, options)
        self.places = dims.max_length
        self.table = nn.Embedding(dims.max_length, dims.hidden)
        nn.init.normal_(self.table.weight, std=0.02)

    def embed(self, places: Tensor) -> Tensor:
        """Returns ``(B or 1, T, E)``; raises ValueError for a place behind the table's end."""
        rows = self.table.num_embeddings
        if not torch.compiler.is_compiling() and (last := int(places.max())) >= rows:
            raise ValueError(
                f"a context of {last + 1} tokens does not fit the table of {rows} learned positions; "
                "shorten it, build the model with a larger max_position_embeddings, "
                "or choose rope, alibi, sinusoidal or none"
            )
        return self.table(places)


class NoPosition(Position):
    """Nothing: a causal model can tell places apart by how many tokens it sees."""
