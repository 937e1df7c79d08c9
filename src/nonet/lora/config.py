"""Options of an adapter."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from nonet.shapes import check_choice, check_positive

ALL_LINEAR = "all-linear"
VARIANTS = ("rslora", "dora", "pissa")
BIASES = ("none", "all", "lora_only")
Names = str | tuple[str | tuple[str, int, float], ...]  # a tuple's items: a name, or name, rank and alpha
Targets = Names | Mapping[str, int | tuple[int, float]]


@dataclass(frozen=True)
class LoraConfig:
    """Options of :func:`nonet.lora.add_lora`.

    Attributes:
        rank: R, rows of A and columns of B.
        alpha: the low-rank term is multiplied by ``alpha / rank``.
        targets: modules that get factors. ``"all-linear"``: every ``nn.Linear`` and ``Conv1D`` but the
            output embedding; another string: a regular expression for the whole path of a module; a tuple:
            names, each of which a path ends with (``"q_proj"``, ``"0.mlp.up_proj"``); a mapping from such
            names to a rank, or to ``(rank, alpha)``, the first name that fits a module being the one that
            counts. Embeddings have to be named.
        dropout: probability with which an input of A is dropped in training.
        bias: which biases of the model are trained too: ``"none"``, ``"all"``, or those of modules with
            factors (``"lora_only"``).
        variants: any of ``"rslora"`` (the factor is ``alpha / sqrt(rank)``), ``"dora"`` (the norm of each
            row of the weight is trained apart from its direction) and ``"pissa"`` (factors start as the
            largest singular directions of the weight).
        full: names of modules that are trained in full, as in ``targets``; they get no factors.
        seed: seed of the first values; each module draws from a generator of this and of its path.
    """

    rank: int = 8
    alpha: float = 8.0
    targets: Targets = ALL_LINEAR
    dropout: float = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    variants: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        check_positive(rank=self.rank, alpha=self.alpha)
        if not isinstance(self.rank, int):
            raise TypeError(f"rank must be a whole number; got {self.rank!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1; got {self.dropout!r}")
        check_choice("bias", self.bias, BIASES)
        _check_names("variants", self.variants)
        for variant in self.variants:
            check_choice("variants", variant, VARIANTS)
        _check_names("full", self.full)
        if not isinstance(self.seed, int):
            raise TypeError(f"seed must be a whole number; got {self.seed!r}")
        object.__setattr__(self, "targets", self._hashable_targets())

    def scale(self, rank: int, alpha: float) -> float:
        """Returns the factor of the low-rank term of a module."""
        return alpha / math.sqrt(rank) if "rslora" in self.variants else alpha / rank

    def _hashable_targets(self) -> Names:
        """Returns the targets, a mapping as the tuple of its ``(name, rank, alpha)``."""
        given = self.targets
        if isinstance(given, str):
            try:
                re.compile(given)
            except re.error as error:
                raise ValueError(f"targets={given!r} is no regular expression: {error}") from None
        if isinstance(given, str) and given:
            return given
        if isinstance(given, Mapping):
            pairs = {name: (v, self.alpha) if isinstance(v, int) else tuple(v) for name, v in given.items()}
            given = tuple((name, *pair) for name, pair in pairs.items())
        if not isinstance(given, tuple):
            raise TypeError(f"targets must be a string, a tuple or a mapping; got {type(given).__name__}")
        if not given:
            raise ValueError("targets must name a module; got nothing")
        for target in given:
            name, *sizes = (target,) if isinstance(target, str) else target
            if not isinstance(name, str) or not name or len(sizes) not in (0, 2):
                raise ValueError(f"targets must hold names, or (name, rank, alpha); got {target!r}")
            if sizes:
                check_positive(**dict(zip((f"rank of {name}", f"alpha of {name}"), sizes, strict=True)))
        return given


def _check_names(field: str, names: object) -> None:
    if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"{field} must be a tuple of names; got {names!r}")
