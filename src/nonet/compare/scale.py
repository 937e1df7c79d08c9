"""How much a comparison does: a full and a quick one, of models made anew and around a pretrained one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from nonet.compare.plan import AROUND


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


def scales(slots: Iterable[str]) -> tuple[Scale, Scale]:
    """Returns how much a full and a quick comparison of these slots do."""
    return (FULL_AROUND, QUICK_AROUND) if set(slots) <= set(AROUND) else (FULL, QUICK)
