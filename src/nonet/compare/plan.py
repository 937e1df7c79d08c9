"""What a comparison will do, as small serialisable values: nothing here trains or measures."""

from __future__ import annotations

import functools
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

INSIDE: tuple[Literal["mixer", "position", "linear"], ...] = (
    "mixer",
    "position",
    "linear",
)  # of a language model that is made anew
AROUND: tuple[Literal["adapter", "pairing"], ...] = ("adapter", "pairing")  # a pretrained model
BASELINE: dict[Slot, str] = {
    "mixer": "flash",
    "position": "rope",
    "linear": "dense",
    "adapter": "full",
    "pairing": "alone",
}
Combo = tuple[str, ...]  # what the slots of a cell hold


@dataclass(frozen=True)
class Work:
    """What is the same for every cell of a comparison: the data, the budget, what is measured.

    Fields of the other kind of comparison are empty: models that are made anew have a ``size``, of which
    growth with ``lengths`` and recall ``tasks`` are measured; else there is a pretrained ``model``.
    """

    source: str | None
    tokenizer: str
    fingerprint: str  # of the encoded corpus, so that a row cannot be mistaken for another text's
    vocab_size: int
    size: str
    model: str
    layers: int  # of a secondary that writes with the model
    window: int
    tokens: int
    batch: int
    evaluations: int
    validation_windows: int
    lengths: tuple[int, ...]
    contexts: tuple[int, ...]
    places: int
    tasks: tuple[str, ...]
    task_length: int
    task_steps: int
    blocks: tuple[int, ...]  # numbers of tokens that a secondary drafts at once
    texts: int  # that a pairing continues
    new: int  # tokens of a continuation
    repeats: int
    threads: int
    device: str


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One training of one model, and what is measured on it; a plain value that a cluster can ship.

    It fills the slots of a language model, or one of those around a pretrained model.
    """

    kind: Literal["language", "recall", "adapter", "pairing"]
    mixer: str = ""
    position: str = ""
    linear: str = ""
    adapter: str = ""
    pairing: str = ""
    seed: int
    slots: tuple[str, ...]
    learning_rate: float  # 0 where nothing is trained
    intermediate_size: int = 0  # of a model that is made anew, as its parameters
    parameters: int = 0
    work: Work

    @property
    def id(self) -> str:
        """A name made of everything that the cell says, but for the tables it appears in."""
        said = {k: v for k, v in asdict(self).items() if k != "slots"}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def combo(self) -> Combo:
        """What its slots hold, in the order of the slots."""
        return tuple(name for slot in SLOTS if (name := getattr(self, slot)))

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{' + '.join(self.combo)}, {self.kind}, seed {self.seed}"

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
    left_out: tuple[
        str, ...
    ] = ()  # sentences: what a fuller comparison would have measured, and why not here

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
            "model": work.model,
            "window": work.window,
            "tokens": work.tokens,
            "lengths": list(work.lengths),
            "work": asdict(work),
            "cells": [cell.to_json() for cell in self.cells],
            "estimate": self.estimate,
            "left_out": list(self.left_out),
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
            left_out=tuple(value.get("left_out", ())),
        )


def choose(slots: Sequence[str], methods: Iterable[str] | None) -> dict[Slot, list[Part]]:
    """Returns the parts that are compared in each slot, the baseline's first.

    Args:
        slots: names among :data:`INSIDE`, or among :data:`AROUND`.
        methods: names of parts or of methods to compare; None for all but variants.

    Raises:
        ValueError: a slot or method is not known, the slots are of different models, or nothing is left to
            compare in them.
    """
    for slot in slots:
        _known("slots", slot, SLOTS)
    wanted_slots = [slot for slot in SLOTS if slot in slots]
    if not (set(slots) <= set(INSIDE) or set(slots) <= set(AROUND)):
        raise ValueError(
            f"slots: {', '.join(wanted_slots)} are not of one model; {', '.join(INSIDE)} lie in models that "
            f"are made anew, {' and '.join(AROUND)} around a pretrained one: compare them in two runs"
        )
    brings = {m.name: {p.name for p in m.parts} for m in all_methods()}
    homes = {p.name: slot for slot in SLOTS for p in parts(slot)}
    wanted: set[str] | None = None
    if methods is not None:
        wanted = set()
        for name in methods:
            _known("methods", name, sorted(set(homes) | set(brings)))
            wanted |= {name} if name in homes else brings[name]
    chosen: dict[Slot, list[Part]] = {}
    for slot in wanted_slots:
        able = [p for p in parts(slot) if p.causal]
        kept = [p for p in able if (p.role != "variant" if wanted is None else p.name in wanted)]
        baseline = [p for p in able if p.name == BASELINE[slot] and p not in kept]
        if kept:
            chosen[slot] = sorted([*baseline, *kept], key=lambda p: p.name != BASELINE[slot])
    if not chosen:
        fill = [slot for slot in SLOTS if any(p.causal and p.name in (wanted or ()) for p in parts(slot))]
        where = f"--slots {','.join(fill)} has them" if fill else "they do not model language"
        raise ValueError(
            f"methods={', '.join(methods or ())} fill none of the slots {', '.join(slots)}; {where}"
        )
    return chosen


def cells(chosen: dict[Slot, list[Part]], work: Work, seeds: Sequence[int]) -> tuple[Cell, ...]:
    """Returns the cells of a comparison, each once though it may appear in several tables.

    The seeds run in the outer loop, so that a comparison stopped early has every method once.
    """
    make = _around if work.model else _inside
    return tuple(cell for seed in seeds for cell in make(chosen, work, seed))


def _inside(chosen: dict[Slot, list[Part]], work: Work, seed: int) -> list[Cell]:
    """The cells of models that are made anew.

    In the cells of a slot that slot varies and the others hold the baseline. All models have the
    baseline's parameters, but for what a multiple of 8 in the channel mixer's width allows.
    """
    combos: dict[Combo, list[str]] = {}
    for slot, candidates in chosen.items():
        for candidate in candidates:
            filled = {**BASELINE, slot: candidate.name}
            combos.setdefault(tuple(filled[inside] for inside in INSIDE), []).append(slot)
    kinds: tuple[Literal["language", "recall"], ...] = ("language", "recall") if work.tasks else ("language",)
    return [
        Cell(
            kind=kind,
            **_sized(combo, work.size, work.vocab_size, work.window),
            seed=seed,
            slots=tuple(slots),
            work=work,
        )
        for kind in kinds
        for combo, slots in combos.items()
        if kind == "language" or "mixer" in slots
    ]


def _around(chosen: dict[Slot, list[Part]], work: Work, seed: int) -> list[Cell]:
    """The cells of a pretrained model: one for each part."""
    from nonet.training import finetune, pairing

    rates = {"adapter": finetune.RATES, "pairing": pairing.RATES}
    out = []
    for kind in AROUND:
        for candidate in chosen.get(kind, ()):
            filled: dict[str, Any] = {kind: candidate.name}
            rate = rates[kind].get(candidate.name, 0.0)
            out.append(Cell(kind=kind, **filled, seed=seed, slots=(kind,), learning_rate=rate, work=work))
    return out


def model_config(combo: Combo, size: str, vocab_size: int, window: int, **overrides: Any) -> NonetConfig:
    """Returns the configuration of the language model of a mixer, a position and a linear."""
    from nonet.model import preset

    mixer, position, linear = combo
    return preset(
        size,
        vocab_size=vocab_size,
        pattern=part("mixer", mixer).letter,
        position=position,
        linear=linear,
        max_position_embeddings=window,
        **overrides,
    )


@functools.cache
def _sized(combo: Combo, size: str, vocab_size: int, window: int) -> dict[str, Any]:
    """Returns the fields of a cell that follow from what its slots hold."""
    from nonet.model import LEARNING_RATES, count_parameters, matched

    target = count_parameters(
        model_config(tuple(BASELINE[slot] for slot in INSIDE), size, vocab_size, window)
    )
    config = matched(model_config(combo, size, vocab_size, window), target)
    rate = LEARNING_RATES[size]
    for slot, name in zip(INSIDE, combo, strict=True):
        rate *= part(slot, name).learning_rate
    return {
        **dict(zip(INSIDE, combo, strict=True)),
        "learning_rate": rate,
        "intermediate_size": config.intermediate_size,
        "parameters": count_parameters(config),
    }


def _known(name: str, value: str, allowed: Iterable[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: {value!r} is not known; choose from {', '.join(allowed)}")
