"""Options of an adapter."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nonet.shapes import check_choice, check_positive, freeze_lists

ALL_LINEAR = "all-linear"
VARIANTS = ("rslora", "dora", "pissa")
BIASES = ("none", "all", "lora_only")
Names = str | Sequence[str | tuple[str, int, float]]  # items: a name, or name, rank and alpha
Targets = Names | Mapping[str, int | tuple[int, float]]


@dataclass(frozen=True)
class LoraConfig:
    """Options of :func:`nonet.lora.add_lora`.

    Lists serve wherever tuples do; they are stored as tuples.

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
        full: names of modules that are trained in full, as in ``targets``; they get no factors and are saved
            with the adapter. None: the head of a model for classification, question answering or multiple
            choice, which no base checkpoint holds; of any other model nothing. A tuple names exactly the
            modules, the empty one none.
        seed: seed of the first values; each module draws from a generator of this and of its path.
    """

    rank: int = 8
    alpha: float = 8.0
    targets: Targets = ALL_LINEAR
    dropout: float = 0.0
    bias: Literal["none", "all", "lora_only"] = "none"
    variants: Sequence[str] = ()
    full: Sequence[str] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        freeze_lists(self)
        _check_sizes(self.rank, self.alpha)
        if not (isinstance(self.dropout, (int, float)) and 0 <= self.dropout < 1):
            raise ValueError(f"dropout must be at least 0 and below 1; got {self.dropout!r}")
        check_choice("bias", self.bias, BIASES)
        _check_names("variants", self.variants)
        for variant in self.variants:
            check_choice("variants", variant, VARIANTS)
        if self.full is not None:
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
            got = "an empty one" if given == "" else type(given).__name__
            raise TypeError(f"targets must be a string, a tuple or list of names, or a mapping; got {got}")
        if not given:
            raise ValueError("targets must name a module; got nothing")
        for target in given:
            name, *sizes = (target,) if isinstance(target, str) else target
            if not isinstance(name, str) or not name or len(sizes) not in (0, 2):
                raise ValueError(f"targets must hold names, or (name, rank, alpha); got {target!r}")
            if sizes:
                rank, alpha = sizes
                _check_sizes(rank, alpha, f" of {name}")
        return given


def _check_sizes(rank: object, alpha: object, of: str = "") -> None:
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise TypeError(f"rank{of} must be a whole number; got {rank!r}")
    check_positive(**{f"rank{of}": rank, f"alpha{of}": alpha})  # type: ignore[arg-type]


def _check_names(field: str, names: object) -> None:
    if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names):
        raise TypeError(f"{field} must be a tuple or list of names; got {names!r}")
