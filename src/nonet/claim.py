"""What a paper claims and what was found here: the values that methods, the ledger and chapters share.

A method's claims.py lists :class:`Claim` records. Their experiments are handed all that they need to train
and to measure, a :class:`nonet.ledger.Lab`, so that no method imports a model or a training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Verdict = Literal["holds", "holds in part", "does not hold here", "cannot be tested here"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)


@dataclass(frozen=True)
class Figure:
    """One quantity, every time that it was measured: a value a seed, or a repetition."""

    name: str
    values: tuple[float, ...]
    unit: str = ""


@dataclass(frozen=True)
class Curve:
    """A line of a plot; ``low`` and ``high`` bound its spread where it was measured more than once."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] | None = None
    high: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Plot:
    """Curves over one axis; ``x`` and ``y`` say what the axes show, units included."""

    x: str
    y: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True)
class Finding:
    """What an experiment found.

    Attributes:
        verdict: what the evidence bears, and never more.
        evidence: a sentence or two with the figures, for people.
        figures: the same as numbers.
        plot: the same as a picture, where one says more.
    """

    verdict: Verdict
    evidence: str
    figures: tuple[Figure, ...] = ()
    plot: Plot | None = None


@dataclass(frozen=True)
class Claim:
    """What a paper says, and the experiment at the reader's scale that tests it.

    Attributes:
        name: lower case with hyphens, unique among the method's.
        statement: what the paper says, with its figure, in our words.
        source: arXiv identifier, and the place in the paper.
        experiment: what is done here, and how it is smaller than the paper's.
        test: runs it, with a :class:`nonet.ledger.Lab`.
    """

    name: str
    statement: str
    source: str
    experiment: str
    test: Callable[[Any], Finding] = field(repr=False)


class Untestable(Exception):  # noqa: N818  (an outcome, not a mistake)
    """Raised by an experiment that lacks what it needs on this machine; its text says what."""


def judge(value: float, holds: float, in_part: float) -> Verdict:
    """Returns the verdict on a figure that the paper wants large.

    Args:
        value: what was found.
        holds: from here on the claim holds.
        in_part: from here on it holds in part.
    """
    return "holds" if value >= holds else "holds in part" if value >= in_part else "does not hold here"
