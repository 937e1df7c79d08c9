"""Ternary weights at two bits each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional as F

from nonet.shapes import Tensors

_PACKED = Tensors("out bytes", codes="out bytes: byte", scale=": float")
_DENSE = Tensors("out in", weight="out in")


@dataclass(frozen=True, eq=False)
class PackedTernary:
    """A matrix of -1, 0 and 1 at two bits a weight, and the one scale that all of them share.

    Byte ``j`` of a row holds the weights ``4 j`` to ``4 j + 3``, the first in its lowest bits, each as
    its value plus one. The last byte of a row is filled up with zeros, so any width can be packed.

    Attributes:
        codes: ``(out, ceil(in / 4))`` bytes.
        shape: ``(out, in)`` of the matrix.
        scale: what a weight of one stands for, a float32 scalar.

    Raises:
        TypeError: ``codes`` or ``scale`` is no tensor.
        ValueError: their shapes, dtypes or devices do not fit each other.
    """

    codes: UInt8[Tensor, "out bytes"]
    shape: tuple[int, int]
    scale: Float[Tensor, ""]

    def __post_init__(self) -> None:
        _PACKED.check(self.codes, self.scale)
        out, width = self.shape
        if tuple(self.codes.shape) != (out, -(-width // 4)):
            fits = (out, -(-width // 4))
            raise ValueError(
                f"codes must have the shape {fits} for shape={self.shape}; got {tuple(self.codes.shape)}"
            )

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the ``(out, in)`` matrix of -1, 0 and 1 in ``dtype``."""
        byte = torch.arange(256, device=self.codes.device)
        weights = torch.stack([(byte >> shift & 3) - 1 for shift in (0, 2, 4, 6)], dim=-1).to(dtype)
        return F.embedding(self.codes.int(), weights).flatten(1)[:, : self.shape[1]]

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns ``scale`` times the matrix, ``(out, in)`` in ``dtype``."""
        return self.unpack(dtype) * self.scale.to(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that the codes and the scale take."""
        return self.codes.nbytes + self.scale.nbytes


def absmean_ternary(weight: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns the nearest ternary values and their scale, both in float32 or wider.

    .. math:: \gamma = \max(\mathrm{mean}|W|, 10^{-5}), \qquad
        \tilde W = \mathrm{clip}(\mathrm{round}(W / \gamma), -1, 1)

    Source: Ma et al. 2024 (2402.17764), equations 1 to 3.
    """
    w = weight.to(torch.promote_types(weight.dtype, torch.float32))
    scale = w.abs().mean().clamp(min=1e-5)
    return (w * (1 / scale)).round_().clamp_(-1, 1), scale


@torch.no_grad()
def pack_ternary(weight: Float[Tensor, "out in"]) -> PackedTernary:
    """Quantises a dense matrix to -1, 0 and 1 times its mean magnitude, and packs it.

    Args:
        weight: ``(out, in)``, floating; zero is kept as zero, and the scale is at least 1e-5.

    Returns:
        The packed matrix, ``out * ceil(in / 4) + 4`` bytes, on the device of ``weight``.

    Raises:
        TypeError: ``weight`` is no tensor.
        ValueError: ``weight`` is not a floating matrix, is empty, or holds a number that is not finite.

    Complexity: a few passes over the weights. Source: Ma et al. 2024 (2402.17764), equations 1 to 3.
    """
    sizes = _DENSE.check(weight)
    if weight.is_cpu and not bool(weight.isfinite().all()):
        raise ValueError(
            "weight must hold finite numbers only, since codes stand for -1, 0 and 1; got NaN or infinity"
        )
    values, scale = absmean_ternary(weight)
    padded = F.pad(values, (0, -sizes["in"] % 4)) + 1
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8, device=weight.device)
    codes = (padded.to(torch.uint8).unflatten(1, (-1, 4)) << shifts).sum(-1, dtype=torch.uint8)
    return PackedTernary(codes, (sizes["out"], sizes["in"]), scale.to(torch.float32))
