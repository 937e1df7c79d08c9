"""How much a comparison does: a full one, a quick one, and two smaller ones, for each kind of model."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nonet.compare.plan import AROUND, Work

RECALL = 2  # recall tasks together train on at most this many times the tokens of a model


@dataclass(frozen=True)
class Scale:
    """How much a comparison does."""

    tokens: int
    seeds: int
    window: int = 256
    batch: int = 4
    evaluations: int = 8
    validation_windows: int = 64
    lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096)
    contexts: tuple[int, ...] = (256, 1024, 4096)
    places: int = 1024
    tasks: tuple[str, ...] = ("selective_copying", "induction_heads", "associative_recall", "duplication")
    task_length: int = 64
    task_steps: int = 1500
    blocks: tuple[int, ...] = ()
    texts: int = 0
    new: int = 0
    repeats: int = 5


QUICK = Scale(
    tokens=409_600,
    seeds=1,
    evaluations=6,
    validation_windows=48,
    lengths=(256, 512, 1024, 2048),
    contexts=(256, 1024, 2048),
    tasks=("duplication",),
    task_length=32,
    task_steps=300,
    repeats=3,
)
FULL = Scale(tokens=4_194_304, seeds=3)
FULL_AROUND = Scale(
    tokens=131_072,
    seeds=3,
    batch=2,
    validation_windows=32,
    lengths=(),
    contexts=(256,),
    places=0,
    tasks=(),
    task_length=0,
    task_steps=0,
    blocks=(1, 2, 3, 4, 6, 8),
    texts=8,
    new=128,
)
QUICK_AROUND = replace(
    FULL_AROUND, tokens=16_384, seeds=1, evaluations=4, validation_windows=8, texts=4, new=32, repeats=3
)


SHORT = replace(
    QUICK, evaluations=4, validation_windows=24, lengths=(256, 512, 1024), contexts=(256, 1024), places=512
)
LEAST = replace(SHORT, evaluations=2, validation_windows=12, lengths=(256, 512), contexts=(256,))
SHORT_AROUND = replace(QUICK_AROUND, blocks=(2, 4, 8), evaluations=2)
LEAST_AROUND = replace(SHORT_AROUND, blocks=(4,), validation_windows=4, texts=2)


def scales(slots: Iterable[str]) -> tuple[Scale, ...]:
    """Returns how much a full comparison of these slots does, a quick one, and two smaller ones."""
    around = set(slots) <= set(AROUND)
    return (FULL_AROUND, QUICK_AROUND, SHORT_AROUND, LEAST_AROUND) if around else (FULL, QUICK, SHORT, LEAST)


def recall_tokens(of: Scale | Work) -> int:
    """Returns the tokens that the recall tasks of one model train on."""
    return len(of.tasks) * of.task_steps * 4 * of.batch * of.task_length


def with_less_recall(scale: Scale) -> tuple[Scale, ...]:
    """Returns the scale with its own recall tasks, with those of a quick comparison, and with none."""
    if not scale.tasks:
        return (scale,)
    quick = replace(scale, tasks=QUICK.tasks, task_length=QUICK.task_length, task_steps=QUICK.task_steps)
    return (scale, quick, replace(scale, tasks=(), task_length=0, task_steps=0))


def recall_fits(of: Scale | Work, tokens: int) -> bool:
    """Says whether recall takes no more than its share beside models that train on ``tokens``."""
    return recall_tokens(of) <= RECALL * tokens
