"""What the model asks of whatever fills a slot: the contract between the model and the methods.

The model builds a mixer a layer and one position module from their names, and hands each forward
pass a :class:`Context`. A method's ``layer.py`` subclasses :class:`Mixer` or :class:`Position` and
needs to know nothing else of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

LinearFactory = Callable[..., nn.Module]  # (in_features, out_features, bias=False)
Lengths = int | Tensor  # tokens of a context without its padding: of all rows, or of each row (B,)


@dataclass(frozen=True)
class Dims:
    """What a part may know of the model around it."""

    hidden: int  # E
    heads: int  # H
    kv_heads: int  # G
    head_dim: int  # D
    layers: int
    max_length: int  # the length that tables and fixed projections are made for
    causal: bool = True
    eps: float = 1e-6


class State(Protocol):
    """One layer's memory of the tokens that it has seen: named tensors with the batch first."""

    def get(self, name: str) -> Tensor | None:
        """Returns a tensor kept under ``name``, or None before the first call."""

    def put(self, name: str, value: Tensor) -> None:
        """Keeps a tensor under ``name``."""


class Memo:
    """Keeps the discrete and random choices of a forward pass, so that a recomputation repeats them."""

    def __init__(self) -> None:
        self._kept: list[Any] = []
        self._replay: Iterator[Any] | None = None

    def __call__(self, choose: Callable[[], Any]) -> Any:
        """Returns ``choose()`` the first time, and what it returned then when replayed."""
        if self._replay is not None:
            return next(self._replay)
        self._kept.append(choose())
        return self._kept[-1]

    def rewind(self) -> None:
        """Makes the following calls return what the first ones did, in their order."""
        self._replay = iter(self._kept)


class Rotation(Protocol):
    """Turns queries and keys by angles that grow with their places.

    ``of_whole`` says that the angles depend on the length of the whole context, so that a cache has
    to keep keys as they were before the rotation.
    """

    of_whole: bool

    def __call__(self, x: Tensor, places: Tensor) -> Tensor:
        """Returns ``x`` (B, n, L, D) turned for tokens at ``places`` (B or 1, L)."""


def _just_choose(choose: Callable[[], Any]) -> Any:
    return choose()


@dataclass
class Context:
    """What one forward pass tells its mixers about the tokens they mix.

    Of the ``S = past + T`` tokens seen so far, the last T are new. Real tokens of a row are those from
    ``starts[b]`` up to ``ends[b]``; None means from the first, and up to the last. ``places`` counts
    from the first real token.
    """

    places: Tensor  # (B or 1, T) of the new tokens
    past: int = 0
    starts: Tensor | None = None  # (B,) left padding
    ends: Tensor | None = None  # (B,) right padding
    rotation: Rotation | None = None
    slopes: Tensor | None = None  # (H,) or (B, H) of ALiBi
    shared: nn.ModuleDict | None = None  # what mixers of one name share over the layers
    memo: Callable[[Callable[[], Any]], Any] = _just_choose  # a Memo where a pass is recomputed
    _key_places: Tensor | None = None

    def key_places(self) -> Tensor:
        """Returns the places ``(B or 1, S)`` of all tokens seen so far; padding has place 0."""
        if self._key_places is None:  # one tensor for all layers, so that they can share its angles
            seen = self.past + self.places.shape[1]
            places = torch.arange(seen, device=self.places.device)[None]
            places = places if self.starts is None else (places - self.starts[:, None]).clamp(min=0)
            self._key_places = places
        return self._key_places

    def real(self) -> Tensor | None:
        """Returns the (B, T) mask of new tokens that are no padding; None when all are real."""
        if self.starts is None and self.ends is None:
            return None
        seen = self.past + self.places.shape[1]
        place = torch.arange(self.past, seen, device=self.places.device)[None]
        keep = torch.ones_like(place, dtype=torch.bool)
        if self.starts is not None:
            keep = keep & (place >= self.starts[:, None])
        if self.ends is not None:
            keep = keep & (place < self.ends[:, None])
        return keep


class Mixer(nn.Module):
    """How tokens exchange information: ``(B, T, E) -> (B, T, E)``, one a layer.

    Args:
        dims: the model around it.
        options: the method's dataclass.
        layer: index of the layer, from zero.
        linear: makes every projection, so that the linear slot can change what a weight is.
    """

    def __init__(self, dims: Dims, options: Any, layer: int, linear: LinearFactory) -> None:
        super().__init__()
        self.dims, self.options, self.layer = dims, options, layer

    @classmethod
    def build_shared(cls, dims: Dims, options: Any, linear: LinearFactory) -> nn.Module | None:
        """Returns a module that all layers of this mixer share, found in ``context.shared``."""
        return None

    def init_weights(self, std: float) -> None:
        """Gives the parameters that are this module's own their first values.

        Called after its submodules have had theirs; uses ``torch.nn.init`` functions only.
        """

    def forward(self, x: Tensor, context: Context, state: Any | None = None) -> Tensor:
        """Mixes T new tokens; with a ``state``, continues from it and leaves it up to date."""
        raise NotImplementedError


class Position(nn.Module):
    """How order is known: as a vector added to tokens, as a rotation, or as a bias on scores.

    Attributes:
        places: tokens that there are positions for; None for any number.
    """

    places: int | None = None

    def __init__(self, dims: Dims, options: Any) -> None:
        super().__init__()
        self.dims, self.options = dims, options

    def init_weights(self, std: float) -> None:
        """Gives the parameters that are this module's own their first values."""

    def embed(self, places: Tensor) -> Tensor | None:
        """Returns ``(B, T, E)`` to add to the tokens at ``places`` ``(B, T)``, or None."""
        return None

    def rotation(self, length: Lengths) -> Rotation | None:
        """Returns the rotation of queries and keys for a context of ``length`` tokens, or None."""
        return None

    def slopes(self, length: Lengths) -> Tensor | None:
        """Returns slopes ``(H,)`` or ``(B, H)`` of a linear bias for a context of ``length``, or None."""
        return None
