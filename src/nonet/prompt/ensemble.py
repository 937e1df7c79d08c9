"""Several patterns that classify together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nonet.prompt.fitting import train_pet
from nonet.prompt.pattern import Example
from nonet.prompt.pet import PET
from nonet.shapes import check_positive, freeze_lists


@dataclass(frozen=True)
class Ensemble:
    r"""Several PETs of the same labels, whose scores are averaged.

    .. math:: s(l \mid x) = \frac{1}{Z} \sum_p w(p) \, s_p(l \mid x), \qquad Z = \sum_p w(p)

    Args:
        pets: one for each pattern.
        weights: w(p), zero or above, one for each; None, or only zeros, for equal ones.

    Raises:
        ValueError: there is no PET, their labels differ, or the weights do not fit.

    Source: Schick and Schuetze 2020 (2001.07676), section 3.3.
    """

    pets: Sequence[PET]
    weights: Sequence[float] | None = None

    def __post_init__(self) -> None:
        freeze_lists(self)
        if not self.pets:
            raise ValueError("pets must hold one PET or more")
        for pet in self.pets:
            if pet.verbalizer.labels != self.labels:
                raise ValueError(
                    f"pets must have the same labels, {', '.join(self.labels)}; "
                    f"one has {', '.join(pet.verbalizer.labels)}"
                )
        if self.weights is not None and (len(self.weights) != len(self.pets) or min(self.weights) < 0):
            raise ValueError(
                f"weights must be zero or above, one for each of {len(self.pets)}; got {self.weights}"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of every tensor of scores."""
        return self.pets[0].verbalizer.labels

    def scores(self, examples: Sequence[Example], batch: int = 16) -> Tensor:
        """Returns the averaged score of every label for every example, ``(n, L)``."""
        return average([pet.scores(examples, batch) for pet in self.pets], self.weights)

    def predict(self, examples: Sequence[Example], batch: int = 16) -> list[str]:
        """Returns the label of highest score for every example."""
        return [self.labels[i] for i in self.scores(examples, batch).argmax(-1).tolist()]

    def soft_labels(
        self, examples: Sequence[Example], *, temperature: float = 2.0, batch: int = 16
    ) -> Tensor:
        r"""Returns :math:`\mathrm{softmax}_l(s(l \mid x) / T)`, ``(n, L)``, to teach a classifier."""
        check_positive(temperature=temperature)
        return (self.scores(examples, batch) / temperature).softmax(-1)


def average(scores: Sequence[Tensor], weights: Sequence[float] | None = None) -> Tensor:
    """Returns the weighted mean of scores ``(n, L)``; weights that are all zero count as equal."""
    shares = torch.tensor(weights if weights is not None and any(weights) else [1.0] * len(scores))
    stacked = torch.stack(list(scores))
    return torch.tensordot((shares / shares.sum()).to(stacked), stacked, dims=1)


def accuracy(classifier: PET | Ensemble, examples: Sequence[Example], labels: Sequence[str]) -> float:
    """Returns the share of examples whose predicted label is the one given."""
    if len(labels) != len(examples):
        raise ValueError(f"labels must be one for each of {len(examples)} examples; got {len(labels)}")
    predicted = classifier.predict(examples)
    return sum(a == b for a, b in zip(predicted, labels, strict=True)) / len(labels)


def train_ensemble(
    makers: Sequence[Callable[[], PET]],
    examples: Sequence[Example],
    labels: Sequence[str],
    unlabelled: Sequence[Example] = (),
    *,
    weighted: bool = True,
    **training: Any,
) -> Ensemble:
    """Returns an ensemble of PETs, each trained on the same examples.

    Args:
        makers: each returns a PET that has not been trained, with a model of its own.
        examples: texts, or mappings from the fields of the patterns to texts.
        labels: the label of each example.
        unlabelled: texts for the language model's loss.
        weighted: weigh each PET by its accuracy on the examples before it was trained; else all alike.
        training: options of :func:`nonet.prompt.train_pet`.

    Raises:
        ValueError: as :func:`nonet.prompt.train_pet` and :class:`nonet.prompt.Ensemble` do.

    Source: Schick and Schuetze 2020 (2001.07676), section 3.3.
    """
    pets, weights = [], []
    for make in makers:
        pet = make()
        pets.append(pet)
        weights.append(accuracy(pet, examples, labels) if weighted else 1.0)
        train_pet(pet, examples, labels, unlabelled, **training)
    return Ensemble(pets, weights)
