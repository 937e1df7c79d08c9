"""The scalings of RoPE: how a trained model's angles are slowed so that it can read longer contexts.

Each is a frozen dataclass, and calling it gives frequencies. ``exponents`` holds ``2j / d`` for the d / 2
pairs of dims that turn, so that plain RoPE is ``base ** -exponents``; s is ``factor`` and L is
``original_length``, the context that the model was trained on. The steps are taken in the order of the
authors' and Transformers' code, so that a checkpoint finds the very bits that it was trained with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from nonet.shapes import check_choice, check_positive, freeze_lists

__all__ = ["DynamicNTK", "Linear", "Llama3", "LongRoPE", "Scaling", "YaRN", "scaling_from"]


@dataclass(frozen=True)
class Scaling:
    """What all scalings share.

    Attributes:
        kind: the name by which :func:`scaling_from` finds the class again.
        factor: how many times longer than L the contexts to be read are.
    """

    kind: str = field(init=False)
    factor: float
    of_whole: ClassVar[bool] = False  # the angles depend on the length of the whole context

    def __post_init__(self) -> None:
        if not self.factor >= 1:
            raise ValueError(f"factor must be at least 1; got {self.factor}")

    def __call__(self, base: float, exponents: Tensor, length: int | None) -> tuple[Tensor, float]:
        """Returns the frequencies for a context of ``length`` tokens, and the factor on cos and sin."""
        raise NotImplementedError


@dataclass(frozen=True)
class Linear(Scaling):
    r"""Position interpolation: every place m becomes m / s.

    .. math:: \theta'_j = \theta_j / s

    Source: Chen et al. 2023 (2306.15595), equation 4.
    """

    kind: str = field(default="linear", init=False)

    def __call__(self, base: float, exponents: Tensor, length: int | None) -> tuple[Tensor, float]:
        """Divides all frequencies by s."""
        return 1.0 / base**exponents / self.factor, 1.0


@dataclass(frozen=True)
class DynamicNTK(Scaling):
    r"""NTK-aware scaling that grows with the context: fast dims keep their angles, slow ones are stretched.

    .. math:: b' = b \, (s\,n/L - (s - 1))^{d/(d-2)}, \qquad n = \max(\text{length}, L)

    Source: Peng et al. 2023 (2309.00071), definition 1 and section 3.3; with a factor, Transformers.
    """

    kind: str = field(default="dynamic", init=False)
    original_length: int
    of_whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(original_length=self.original_length)

    def __call__(self, base: float, exponents: Tensor, length: int | None) -> tuple[Tensor, float]:
        """Raises the base once the context is longer than L."""
        width = 2 * exponents.numel()
        if width == 2:
            raise ValueError("head_dim must let at least 4 dims turn for dynamic scaling; got 2")
        ratio = max(length or 0, self.original_length) / self.original_length
        base = base * (self.factor * ratio - (self.factor - 1)) ** (width / (width - 2))
        return 1.0 / base**exponents, 1.0


@dataclass(frozen=True)
class YaRN(Scaling):
    r"""NTK by parts, with a temperature: interpolates dims that turn slowly, leaves those that turn often.

    .. math:: \theta'_j = (1 - \gamma_j)\,\theta_j / s + \gamma_j \theta_j, \qquad c = 0.1 \ln s + 1

    with c on cos and sin. In the paper the ramp gamma is linear in the turns that a dim makes within L; in
    the authors' code, which checkpoints follow, it is linear in the index of the dim between those that turn
    ``beta_fast`` and ``beta_slow`` times.

    Source: Peng et al. 2023 (2309.00071), definitions 2 and 3.

    Attributes:
        original_length: L.
        beta_fast: dims that turn more often within L are left as they are.
        beta_slow: dims that turn less often are interpolated.
        truncate: rounds the ends of the ramp outwards to whole dims.
        attention_factor: c, when another than the paper's.
    """

    kind: str = field(default="yarn", init=False)
    original_length: int
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(attention_factor=self.attention_factor)
        if not self.beta_fast > self.beta_slow > 0:
            raise ValueError(
                f"beta_fast must be above beta_slow, and both above zero; "
                f"got beta_fast={self.beta_fast}, beta_slow={self.beta_slow}"
            )
        if not self.original_length > 2 * math.pi * self.beta_slow:  # no dim would turn that often
            raise ValueError(
                f"original_length must be above 2 pi beta_slow = {2 * math.pi * self.beta_slow:.1f}; "
                f"got {self.original_length}"
            )

    def __call__(self, base: float, exponents: Tensor, length: int | None) -> tuple[Tensor, float]:
        """Blends plain and interpolated frequencies along the ramp."""
        width = 2 * exponents.numel()
        low, high = (self._turning(turns, base, width) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low = max(low, 0)
        index = torch.arange(width // 2, dtype=exponents.dtype, device=exponents.device)
        gamma = 1 - ((index - low) / (high - low)).clamp(0, 1)
        periods = base**exponents
        blend = 1.0 / (self.factor * periods) * (1 - gamma) + 1.0 / periods * gamma
        c = 0.1 * math.log(self.factor) + 1.0 if self.attention_factor is None else self.attention_factor
        return blend, c

    def _turning(self, turns: float, base: float, width: int) -> float:
        """Returns the index, between whole ones, of the dim that turns so many times within L."""
        return width * math.log(self.original_length / (turns * 2 * math.pi)) / (2 * math.log(base))


@dataclass(frozen=True)
class LongRoPE(Scaling):
    r"""A divisor for each pair of dims, found by search: one list up to L, another beyond.

    .. math:: \theta'_j = 1 / (\lambda_j\, b^{2j/d}), \qquad c = \sqrt{1 + \ln s / \ln L}

    with c on cos and sin, for short contexts too.

    Source: Ding et al. 2024 (2402.13753), equation 1 and section 3.

    Attributes:
        original_length: L.
        short_factor: lambda for contexts up to L, one a pair of dims that turn.
        long_factor: lambda for longer contexts.
        attention_factor: c, when another than the paper's.
    """

    kind: str = field(default="longrope", init=False)
    original_length: int
    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    attention_factor: float | None = None
    of_whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(attention_factor=self.attention_factor)
        if not self.original_length > 1:
            raise ValueError(f"original_length must be above 1; got {self.original_length}")
        freeze_lists(self)

    def __call__(self, base: float, exponents: Tensor, length: int | None) -> tuple[Tensor, float]:
        """Divides each frequency by its own number."""
        for name in ("short_factor", "long_factor"):
            if len(getattr(self, name)) != exponents.numel():
                raise ValueError(
                    f"{name} must have {exponents.numel()} numbers, one a pair of dims that turn; "
                    f"got {len(getattr(self, name))}"
                )
        longer = length is not None and length > self.original_length
        divisors = exponents.new_tensor(self.long_factor if longer else self.short_factor)
        c = self.attention_factor
        if c is None:
            c = math.sqrt(1 + math.log(self.factor) / math.log(self.original_length))
        return 1.0 / (divisors * base**exponents), c


@dataclass(frozen=True)
class Llama3(Scaling):
    r"""Interpolates waves longer than ``L / low``, leaves those shorter than ``L / high``, blends between.

    .. math:: \theta'_j = (1 - \gamma_j)\,\theta_j / s + \gamma_j \theta_j, \qquad
              \gamma_j = \mathrm{clamp}\Big(\frac{L \theta_j / 2\pi - low}{high - low}, 0, 1\Big)

    Source: the code of Llama 3.1, whose numbers are the defaults.

    Attributes:
        original_length: L.
        low_freq_factor: waves that fit fewer times into L are interpolated.
        high_freq_factor: waves that fit more often are left as they are.
    """

    kind: str = field(default="llama3", init=False)
    factor: float = 8.0
    original_length: int = 8192
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(original_length=self.original_length)
        if not self.high_freq_factor > self.low_freq_factor > 0:
            raise ValueError(
                f"high_freq_factor must be above low_freq_factor, and both above zero; "
                f"got high_freq_factor={self.high_freq_factor}, low_freq_factor={self.low_freq_factor}"
            )

    def __call__(self, base: float, exponents: Tensor, length: int | None) -> tuple[Tensor, float]:
        """Blends plain and interpolated frequencies by how often a wave fits into L."""
        inv_freq = 1.0 / base**exponents
        fits = self.original_length / (2 * math.pi / inv_freq)
        span = self.high_freq_factor - self.low_freq_factor
        gamma = ((fits - self.low_freq_factor) / span).clamp(0, 1)
        return (1 - gamma) * inv_freq / self.factor + gamma * inv_freq, 1.0


_KINDS = {"linear": Linear, "dynamic": DynamicNTK, "yarn": YaRN, "longrope": LongRoPE, "llama3": Llama3}


def scaling_from(values: Mapping[str, Any]) -> Scaling:
    """Returns the scaling that ``dataclasses.asdict`` wrote; raises ValueError for an unknown kind."""
    values = dict(values)
    kind = values.pop("kind", None)
    check_choice("scaling kind", kind, _KINDS)
    return _KINDS[kind](**values)
