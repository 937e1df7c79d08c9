"""One adapter of one module: its two factors, their first values, and what they add to a weight."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nonet.lora.api import lora_linear
from nonet.lora.config import LoraConfig

# Of matrices with a larger smaller side, PiSSA's singular directions are found by iteration.
EXACT_SVD = 256
ITERATIONS, SPARE = 16, 8


class Factors(nn.Module):
    r"""The trained part of one adapter in one module: A, B, and for DoRA the magnitudes.

    .. math:: W' = W + s B A, \qquad W'_{DoRA} = m \odot \frac{W + s B A}{\lVert W + s B A \rVert_{row}}

    With PiSSA, ``B A`` stands for ``B A - B_0 A_0``, the first values being kept beside: the frozen weight
    keeps its bits, and the term starts as zero.

    A row of ``W + s B A`` that is zero has no direction, and DoRA's formula says 0 / 0. Its gain is then 1,
    the formula's value at the start for rows as small as you like, since m starts as their norm. So a row of
    zeros in W starts as zero, as in the plain layer, and its B learns. PEFT gives NaN there, and the same as
    nonet as soon as the norm is above zero.

    Args:
        a: A ``(R, in)``.
        b: B ``(out, R)``.
        scale: s.
        dropout: probability with which an input of A is dropped in training.
        start: PiSSA's ``A_0`` and ``-B_0``, or None.
        magnitude: DoRA's m ``(out,)``, or None.

    Complexity: see :func:`nonet.lora.lora_linear`; DoRA adds ``2 R in out`` operations a call for the norms.
    Source: Hu et al. 2021 (2106.09685), equation 3; Liu et al. 2024 (2402.09353), equation 5; Meng et al.
    2024 (2404.02948), equations 2 to 4.
    """

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        scale: float,
        dropout: float = 0.0,
        start: tuple[Tensor, Tensor] | None = None,
        magnitude: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.scale, self.dropout = scale, dropout
        self.magnitude = None if magnitude is None else nn.Parameter(magnitude)
        self.start_a: Tensor | None
        self.start_b: Tensor | None
        for name, value in zip(("start_a", "start_b"), start or (None, None), strict=True):
            self.register_buffer(name, value)

    def pair(self) -> tuple[Tensor, Tensor]:
        """Returns the factors of the change of the weight; PiSSA's have twice the rank."""
        if self.start_a is None or self.start_b is None:
            return self.a, self.b
        return torch.cat([self.a, self.start_a]), torch.cat([self.b, self.start_b], dim=1)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns what a linear layer of the changed weight ``(out, in)`` makes of ``x``."""
        a, b = self.pair()
        keep = self.mask(x)
        kept = 1.0 if keep is None else 1 - self.dropout
        if self.magnitude is None:
            return lora_linear(x, weight, bias, a, b, self.scale / kept, keep)
        gain = self.gain(weight)
        if keep is None:
            out = lora_linear(x, weight, None, a, b, self.scale)
            out = out * gain.to(out.dtype)
            return out if bias is None else out + bias.to(out.dtype)
        # The authors' code drops inputs of all but the frozen weight's own output.
        base = F.linear(x, weight, bias)
        dropped = x * keep / kept
        changed = lora_linear(dropped, weight, None, a, b, self.scale) * gain.to(base.dtype)
        return base + (changed - F.linear(dropped, weight))

    def term(self, x: Tensor) -> Tensor:
        """Returns the low-rank term alone, for a module that does not simply multiply by its weight."""
        a, b = (factor.to(x.dtype) for factor in self.pair())
        keep = self.mask(x)
        x = x if keep is None else x * keep / (1 - self.dropout)
        return (self.scale * (x @ a.mT)) @ b.mT

    def mask(self, x: Tensor) -> Tensor | None:
        """Draws which inputs of A are kept, from the global generator; None in evaluation."""
        if not (self.training and self.dropout):
            return None
        return torch.rand(x.shape, device=x.device) >= self.dropout

    def gain(self, weight: Tensor) -> Tensor:
        """Returns DoRA's ``m / norm`` of every row ``(out,)``; no gradient flows into the norm."""
        assert self.magnitude is not None
        a, b = (factor.detach() for factor in self.pair())
        return _gain(self.magnitude, row_norms(weight.detach(), a, b, self.scale).to(_wide(self.magnitude)))

    @torch.no_grad()
    def merged(self, weight: Tensor) -> Tensor:
        """Returns the changed weight ``(out, in)``, computed in float32 or wider, in the weight's dtype."""
        wide = torch.promote_types(weight.dtype, torch.float32)
        a, b = (factor.to(wide) for factor in self.pair())
        changed = torch.addmm(weight.to(wide), b, a, alpha=self.scale)
        if self.magnitude is not None:
            norms = torch.linalg.vector_norm(changed, dim=1)
            changed *= _gain(self.magnitude.to(wide), norms)[:, None]
        return changed.to(weight.dtype)

    @torch.no_grad()
    def resize(self, weight: Tensor, looks_up: bool, gain: Tensor | None = None) -> None:
        """Takes the size of a weight ``(out, in)`` that has got or lost tokens at its end.

        Args:
            weight: the new weight.
            looks_up: tokens are columns, those of an embedding, and not rows.
            gain: DoRA's gain before. An embedding's norms run over all tokens; its magnitudes follow them, so
                that old tokens keep their vectors.
        """
        tokens = weight.shape[1 if looks_up else 0]
        old = self.a.shape[1] if looks_up else len(self.b)
        if tokens == old:
            return
        for name in ("a", "start_a") if looks_up else ("b", "start_b"):
            if (factor := getattr(self, name)) is not None:
                pad = (0, tokens - old) if looks_up else (0, 0, 0, tokens - old)
                factor.data, factor.grad = F.pad(factor, pad), None  # a negative size cuts off
        if self.magnitude is None:
            return
        norms = row_norms(weight, *self.pair(), self.scale).to(self.magnitude.dtype)
        kept = gain * norms if looks_up and gain is not None else self.magnitude[:tokens]
        self.magnitude.data, self.magnitude.grad = torch.cat([kept, norms[len(kept) :]]), None

    def extra_repr(self) -> str:
        """Returns the sizes, for printing."""
        rank, wide = self.a.shape
        return f"rank={rank}, {wide} -> {len(self.b)}, scale={self.scale:.4g}, dropout={self.dropout}"


def make_factors(
    path: str,
    shape: tuple[int, int],
    weight: Tensor,
    sizes: tuple[int, float],
    config: LoraConfig,
    embedding: bool,
) -> Factors:
    """Returns factors with their first values, drawn from a generator of the seed and of the module's path.

    ``A`` is uniform in ``1 / sqrt(in)`` and ``B`` is zero. Of an embedding ``A`` is zero and ``B`` normal, so
    that tokens which training never meets keep their vectors. PiSSA's are singular directions; those without
    a singular value, as in a matrix of zeros, start as plain LoRA's, or both factors would be zero for ever.

    Args:
        path: the module's path in the model.
        shape: ``(out, in)``.
        weight: the module's weight as ``(out, in)``; read by DoRA and PiSSA.
        sizes: rank and alpha.
        config: the adapter's options.
        embedding: the module looks rows up.
    """
    (out, wide), (rank, alpha) = shape, sizes
    scale = config.scale(rank, alpha)
    generator = torch.Generator().manual_seed(_seed(config.seed, path))
    start, leading = None, None
    if "pissa" in config.variants:
        leading = _leading(weight.detach().float(), rank, generator)
    if embedding:
        a, b = torch.zeros(rank, wide), torch.empty(out, rank).normal_(generator=generator)
    else:
        bound = wide**-0.5
        a, b = torch.empty(rank, wide).uniform_(-bound, bound, generator=generator), torch.zeros(out, rank)
    if leading is not None:
        u, s, vh = leading
        root = (s / scale).sqrt()
        found = s > s[0] * max(out, wide) * torch.finfo(s.dtype).eps  # within the matrix's numerical rank
        a, b = torch.where(found[:, None], root[:, None] * vh, a.to(s)), torch.where(found, u * root, b.to(s))
        start = a.clone(), -b
    magnitude = None
    if "dora" in config.variants:
        magnitude = torch.linalg.vector_norm(weight.detach(), dim=1, dtype=_wide(weight))
    factors = Factors(a, b, scale, config.dropout, start, magnitude)
    return factors.to(weight.device, _wide(weight))


def row_norms(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    r"""Returns the norms of the rows of ``W + s B A`` without forming ``B A``, in float64.

    .. math:: \lVert w_i + s\, b_i A \rVert^2
        = \lVert w_i \rVert^2 + 2 s\, (W A^\top)_i \cdot b_i + s^2\, b_i (A A^\top) b_i

    Sums over the width are float32 or wider; the three terms, which can cancel, are added in float64.

    Args:
        weight: W ``(out, in)``.
        a: A ``(R, in)``.
        b: B ``(out, R)``.
        scale: s.

    Complexity: ``2 R in out`` operations. Source: the norm of Liu et al. 2024 (2402.09353), equation 5,
    multiplied out.
    """
    wide = _wide(weight)
    a, b = a.to(wide), b.double()
    square = torch.linalg.vector_norm(weight, dim=1, dtype=torch.float64).square()
    cross = ((weight.to(wide) @ a.mT).double() * b).sum(1)
    own = ((b @ (a.double() @ a.double().mT)) * b).sum(1)
    return (square + 2 * scale * cross + scale**2 * own).clamp_(min=0).sqrt_()


def _gain(magnitude: Tensor, norms: Tensor) -> Tensor:
    """Returns ``m / norm``, and 1 where the norm is zero; a division by it would give m a gradient of NaN."""
    zero = norms == 0
    return torch.where(zero, 1.0, magnitude / norms.masked_fill(zero, 1.0))


def _wide(weight: Tensor) -> torch.dtype:
    """Returns the dtype of factors beside a weight: float32, or wider where the weight is."""
    return torch.promote_types(weight.dtype, torch.float32) if weight.is_floating_point() else torch.float32


def _seed(seed: int, path: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{path}".encode(), digest_size=8).digest(), "little")


def _leading(weight: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the ``rank`` largest singular values of a matrix, with their directions.

    Large matrices are first projected on a random subspace that power iteration has turned towards those
    directions (Halko et al. 2011, algorithm 4.4).
    """
    if min(weight.shape) <= EXACT_SVD:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
        return u[:, :rank], s[:rank], vh[:rank]
    probe = torch.randn(weight.shape[1], min(rank + SPARE, *weight.shape), generator=generator)
    basis = torch.linalg.qr(weight @ probe.to(weight)).Q
    for _ in range(ITERATIONS):
        basis = torch.linalg.qr(weight.mT @ basis).Q
        basis = torch.linalg.qr(weight @ basis).Q
    u, s, vh = torch.linalg.svd(basis.mT @ weight, full_matrices=False)
    return basis @ u[:, :rank], s[:rank], vh[:rank]
