"""What a comparison will do, as small serialisable values: nothing here trains or measures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from nonet.compare.store import FORMAT
from nonet.registry import SLOTS, Part, Slot, part, parts
from nonet.registry import methods as all_methods

if TYPE_CHECKING:
    from nonet.model import NonetConfig

BASELINE: dict[Slot, str] = {"mixer": "flash", "position": "rope", "linear": "dense"}
COMPARED: tuple[Slot, ...] = ("mixer", "position", "linear")  # the slots inside a language model


@dataclass(frozen=True)
class Work:
    """What is the same for every cell of a comparison: the data, the budget, what is measured."""

    source: str | None
    tokenizer: str
    fingerprint: str  # of the encoded corpus, so that a row cannot be mistaken for another text's
    vocab_size: int
    size: str
    window: int
    tokens: int
    batch: int
    learning_rate: float
    evaluations: int
    validation_windows: int
    lengths: tuple[int, ...]
    contexts: tuple[int, ...]
    places: int
    tasks: tuple[str, ...]
    task_length: int
    task_steps: int
    repeats: int
    threads: int
    device: str


@dataclass(frozen=True)
class Cell:
    """One training of one model, and what is measured on it; a plain value that a cluster can ship."""

    kind: Literal["language", "recall"]
    mixer: str
    position: str
    linear: str
    seed: int
    slots: tuple[str, ...]
    learning_rate: float
    intermediate_size: int
    parameters: int
    work: Work

    @property
    def id(self) -> str:
        """A name made of everything that the cell says, but for the tables it appears in."""
        said = {k: v for k, v in asdict(self).items() if k != "slots"}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def combo(self) -> tuple[str, str, str]:
        """What its slots hold: mixer, position, linear."""
        return self.mixer, self.position, self.linear

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.mixer} + {self.position} + {self.linear}, {self.kind}, seed {self.seed}"

    def to_json(self) -> dict[str, Any]:
        """Returns the cell as plain values, its id among them."""
        return {"id": self.id, **json.loads(json.dumps(asdict(self)))}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Cell:
        """Returns the cell that :meth:`to_json` wrote."""
        fields = {k: v for k, v in value.items() if k != "id"}
        work: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.pop("work").items()
        }
        return cls(**{**fields, "slots": tuple(fields["slots"])}, work=Work(**work))


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
    tasks: tuple[str, ...] = ("selective_copying", "induction_heads", "associative_recall", "duplication")
    task_length: int = 64
    task_steps: int = 1500
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
# Sizes of the synthetic tasks, and among how many answers a guess would choose.
TASK_SIZES: dict[str, tuple[dict[str, int], int]] = {
    "selective_copying": ({"vocab_size": 16, "data": 8}, 14),
    "induction_heads": ({"vocab_size": 16}, 15),
    "associative_recall": ({"vocab_size": 32, "pairs": 4}, 16),
    "duplication": ({"vocab_size": 16}, 15),
}


@dataclass(frozen=True)
class Plan:
    """A comparison before it is run: what every cell shares, and the cells in the order of running."""

    command: str
    created: str
    corpus: dict[str, Any]
    slots: tuple[str, ...]
    seeds: tuple[int, ...]
    work: Work
    cells: tuple[Cell, ...]
    environment: dict[str, Any]
    estimate: dict[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns the plan as the plain values that ``plan.json`` holds."""
        work = self.work
        return {
            "format": FORMAT,
            "command": self.command,
            "created": self.created,
            "corpus": self.corpus,
            "slots": list(self.slots),
            "seeds": list(self.seeds),
            "size": work.size,
            "window": work.window,
            "tokens": work.tokens,
            "lengths": list(work.lengths),
            "work": asdict(work),
            "cells": [cell.to_json() for cell in self.cells],
            "estimate": self.estimate,
            "environment": self.environment,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Plan:
        """Returns the plan that :meth:`to_json` wrote."""
        cells = tuple(Cell.from_json(c) for c in value["cells"])
        return cls(
            command=value["command"],
            created=value["created"],
            corpus=value["corpus"],
            slots=tuple(value["slots"]),
            seeds=tuple(value["seeds"]),
            work=cells[0].work,
            cells=cells,
            environment=value["environment"],
            estimate=value["estimate"],
        )


def choose(slots: Sequence[str], methods: Iterable[str] | None) -> dict[Slot, list[Part]]:
    """Returns the parts that are compared in each slot, the baseline's first.

    Args:
        slots: names among ``mixer``, ``position`` and ``linear``.
        methods: names of parts or of methods to compare; None for all but variants.

    Raises:
        ValueError: a slot or method is not known, or nothing is left to compare in a slot.
    """
    for slot in slots:
        if slot in SLOTS and slot not in COMPARED:
            raise ValueError(f"slots: {slot!r} is not compared yet; choose from {', '.join(COMPARED)}")
        _known("slots", slot, COMPARED)
    wanted_slots = [slot for slot in COMPARED if slot in slots]
    brings = {m.name: {p.name for p in m.parts} for m in all_methods()}
    everything = {p.name for slot in COMPARED for p in parts(slot)}
    wanted: set[str] | None = None
    if methods is not None:
        wanted = set()
        for name in methods:
            _known("methods", name, sorted(everything | set(brings)))
            wanted |= {name} if name in everything else brings[name]
    chosen: dict[Slot, list[Part]] = {}
    for slot in wanted_slots:
        able = [p for p in parts(slot) if p.causal]
        kept = [p for p in able if (p.role != "variant" if wanted is None else p.name in wanted)]
        baseline = [p for p in able if p.name == BASELINE[slot] and p not in kept]
        if kept:
            chosen[slot] = sorted([*baseline, *kept], key=lambda p: p.name != BASELINE[slot])
    if not chosen:
        raise ValueError(f"methods={', '.join(methods or ())} fill none of the slots {', '.join(slots)}")
    return chosen


def cells(chosen: dict[Slot, list[Part]], work: Work, seeds: Sequence[int]) -> tuple[Cell, ...]:
    """Returns the cells of a comparison, each once though it may appear in several tables.

    In the cells of a slot that slot varies and the others hold the baseline. All models have the
    baseline's parameters, but for what a multiple of 8 in the channel mixer's width allows. The seeds
    run in the outer loop, so that a comparison stopped early has every method once.
    """
    combos: dict[tuple[str, str, str], list[str]] = {}
    for slot, candidates in chosen.items():
        for candidate in candidates:
            filled = dict(BASELINE)
            filled[slot] = candidate.name
            combos.setdefault((filled["mixer"], filled["position"], filled["linear"]), []).append(slot)
    sized = {combo: _sized(combo, work) for combo in combos}
    out = []
    for seed in seeds:
        for kind in ("language", "recall"):
            for combo, slots in combos.items():
                if kind == "recall" and ("mixer" not in slots or not work.tasks):
                    continue
                rate, width, count = sized[combo]
                out.append(Cell(kind, *combo, seed, tuple(slots), rate, width, count, work))
    return tuple(out)


def model_config(combo: tuple[str, str, str], work: Work, **overrides: Any) -> NonetConfig:
    """Returns the configuration of the language model of a mixer, a position and a linear."""
    from nonet.model import preset

    mixer, position, linear = combo
    return preset(
        work.size,
        vocab_size=work.vocab_size,
        pattern=part("mixer", mixer).letter,
        position=position,
        linear=linear,
        max_position_embeddings=work.window,
        **overrides,
    )


def _sized(combo: tuple[str, str, str], work: Work) -> tuple[float, int, int]:
    """Returns the learning rate, channel mixer's width and parameters of a combination."""
    from nonet.model import count_parameters, matched

    target = count_parameters(
        model_config((BASELINE["mixer"], BASELINE["position"], BASELINE["linear"]), work)
    )
    config = matched(model_config(combo, work), target)
    rate = work.learning_rate
    for slot, name in zip(COMPARED, combo, strict=True):
        rate *= part(slot, name).learning_rate
    return rate, config.intermediate_size, count_parameters(config)


def _known(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not known; choose from {', '.join(allowed)}")
