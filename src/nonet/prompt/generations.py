"""iPET: generations of PETs that label texts for each other."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nonet.prompt.ensemble import Ensemble, average, train_ensemble
from nonet.prompt.fitting import train_pet
from nonet.prompt.pattern import Example
from nonet.prompt.pet import PET

_ENOUGH = 1000  # examples that the last generation is trained on
_ZERO_SHOT, _MOST_LIKELY = 10, 100


def next_training_set(
    scores: Tensor, counts: Sequence[int], *, seed: int, most_likely: int | None = None
) -> list[tuple[int, int]]:
    r"""Returns texts with the labels that an ensemble gives them, as pairs of two indices (text, label).

    For each label l, ``counts[l]`` texts are drawn without replacement, each with a probability in proportion
    to :math:`q(l \mid x)`, from the texts whose most likely label is l. Where these are fewer, all are taken.

    Args:
        scores: the ensemble's ``(n, L)``; q is their softmax.
        counts: texts to draw for each label.
        seed: of the draw.
        most_likely: draw from so many texts of highest :math:`q(l \mid x)` instead, whatever their own
            most likely label is, as zero-shot training begins.

    Source: Schick and Schuetze 2020 (2001.07676), section 3.4.
    """
    if scores.dim() != 2 or scores.shape[1] != len(counts):
        raise ValueError(f"scores must have the shape (n, L={len(counts)}); got {tuple(scores.shape)}")
    generator = torch.Generator().manual_seed(seed)
    q = scores.double().cpu().softmax(-1)
    drawn: list[tuple[int, int]] = []
    for label, count in enumerate(counts):
        if most_likely is None:
            pool = (q.argmax(-1) == label).nonzero().flatten()
        else:
            pool = q[:, label].topk(min(most_likely, len(q))).indices
        if number := min(count, len(pool)):
            chance = q[pool, label].clamp(min=torch.finfo(q.dtype).tiny)
            picked = pool[torch.multinomial(chance, number, generator=generator)]
            drawn += [(i, label) for i in picked.tolist()]
    return drawn


def ipet(
    makers: Sequence[Callable[[], PET]],
    examples: Sequence[Example],
    labels: Sequence[str],
    unlabelled: Sequence[Example],
    *,
    generations: int | None = None,
    growth: int = 5,
    share: float = 0.25,
    weighted: bool = True,
    seed: int = 0,
    **training: Any,
) -> Ensemble:
    r"""Returns the last of several generations of PETs, each trained on more texts than the one before.

    In every generation each pattern starts from an untrained model. It learns from the examples, and from
    texts that some of the other patterns' models of the generation before have labelled, so many that label l
    has :math:`c_j(l) = d\, c_{j-1}(l)` in all. Without examples the first models are used untrained, and the
    first set has 10 texts, as many for each label, out of the 100 that are most likely for it.

    Args:
        makers: each returns a PET that has not been trained, with a model of its own; two or more.
        examples: texts, or mappings from the fields of the patterns to texts; may be empty.
        labels: the label of each example.
        unlabelled: texts to be labelled; also those of the language model's loss, unless a PET's alpha is 0.
        generations: k; None for the least that makes 1000 texts, and at least one.
        growth: d, the factor from one generation to the next.
        share: of the other models that label texts for one, rounded, at least one.
        weighted: weigh each PET by its accuracy on the examples before it was trained; else all alike.
        seed: of every choice, and of each training.
        training: further options of :func:`nonet.prompt.train_pet`.

    Raises:
        ValueError: there are fewer makers than two, or an option is out of range.

    Complexity: ``k + 1`` trainings and k passes over ``unlabelled`` for each pattern; the models of one
    generation are held at a time.
    Source: Schick and Schuetze 2020 (2001.07676), section 3.4.
    """
    if len(makers) < 2:
        raise ValueError(
            f"makers must be two or more, since models label texts for others; got {len(makers)}"
        )
    if not unlabelled:
        raise ValueError("unlabelled must hold one text or more")
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1; got {share!r}")
    if growth < 2 or (generations is not None and generations < 1):
        raise ValueError(
            f"growth must be 2 or more and generations 1 or more; got {growth!r} and {generations!r}"
        )
    if examples:
        first = train_ensemble(makers, examples, labels, unlabelled, weighted=weighted, seed=seed, **training)
    else:
        first = Ensemble([make() for make in makers])
    names, pets, weights = first.labels, list(first.pets), first.weights
    del first  # so that a generation's models are freed before the next one's are made
    chance = random.Random(seed)
    plan = _plan([list(labels).count(name) for name in names], growth, generations)
    for generation, counts in enumerate(plan):
        scores = [pet.scores(unlabelled) for pet in pets]
        pets = []
        for i, make in enumerate(makers):
            others = [j for j in range(len(makers)) if j != i]
            asked = chance.sample(others, max(1, round(share * len(others))))
            drawn = next_training_set(
                average([scores[j] for j in asked], weights and [weights[j] for j in asked]),
                counts,
                seed=chance.getrandbits(32),
                most_likely=None if examples or generation else _MOST_LIKELY,
            )
            pets.append(make())
            train_pet(
                pets[-1],
                [*examples, *(unlabelled[text] for text, _ in drawn)],
                [*labels, *(names[label] for _, label in drawn)],
                unlabelled,
                seed=seed,
                **training,
            )
    return Ensemble(pets, weights)


def _plan(given: Sequence[int], growth: int, generations: int | None) -> list[list[int]]:
    """Texts to draw for each label, generation by generation, beside those that are given."""
    if any(given):
        base, power = list(given), 1
    else:
        each, rest = divmod(_ZERO_SHOT, len(given))
        base, power = [max(1, each + (label < rest)) for label in range(len(given))], 0
    plan: list[list[int]] = []
    while len(plan) != generations:
        plan.append([c * growth**power - g for c, g in zip(base, given, strict=True)])
        power += 1
        if generations is None and sum(plan[-1]) + sum(given) >= _ENOUGH:
            break
    return plan
