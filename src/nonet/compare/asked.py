"""From what a user asked for to a plan: the slots, the model, the text, and as much as the budget affords."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging

from nonet.compare.cost import Step, estimate, probes, tokens_for
from nonet.compare.plan import AROUND, INSIDE, Combo, Plan, Work, cells, choose
from nonet.compare.provenance import provenance
from nonet.compare.scale import Scale, scales
from nonet.data import EncodedCorpus, encode_corpus, load_corpus
from nonet.hf.pretrained import DEFAULT, load_pretrained
from nonet.model import LEARNING_RATES
from nonet.registry import Part, Slot


@dataclass(frozen=True)
class Asked:
    """The options of the command as the user gave them; None where not."""

    text: str | None = None
    slots: tuple[str, ...] | None = None
    methods: tuple[str, ...] | None = None
    budget: str | None = None
    tokens: int | None = None
    seeds: int | None = None
    size: str | None = None
    lengths: tuple[int, ...] | None = None
    tokenizer: str | None = None
    model: str | None = None
    quick: bool = False


def make_plan(asked: Asked, people: Console) -> tuple[Plan, dict[Combo, Step]]:
    """Returns the plan of what was asked, and what a step of each of its models costs.

    Raises:
        ValueError: an option is wrong, or the text or the model cannot serve.
        OSError: a file cannot be read or written.
    """
    if asked.budget and asked.tokens:
        raise ValueError("give --budget or --tokens, not both")
    for name, value in (("--tokens", asked.tokens), ("--seeds", asked.seeds)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    chosen = choose(asked.slots or INSIDE, asked.methods)
    full, quick = scales(chosen)
    scale = quick if asked.quick else full
    model, tokenizer = (_pretrained if chosen.keys() <= set(AROUND) else _anew)(asked, scale)
    corpus = load_corpus(asked.text)
    text = encode_corpus(corpus, tokenizer)
    common: dict[str, Any] = {
        "source": None if asked.text is None else str(Path(asked.text).resolve()),
        "tokenizer": model["model"] or text.tokenizer,  # whose own is where it was unpacked
        "fingerprint": text.folder.name,
        "vocab_size": text.vocab_size,
        **model,
        "threads": torch.get_num_threads(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
    }
    work, seeds = _work(asked, scale, common), tuple(range(asked.seeds or scale.seeds))
    _long_enough(text, work)
    planned = cells(chosen, work, seeds)
    with people.status("Measuring one step of every model"):
        steps = probes(planned)
    if asked.budget:
        work, seeds = _fitted(parse_seconds(asked.budget), asked, chosen, common, steps)
        planned = cells(chosen, work, seeds)
    plan = Plan(
        command=shlex.join(["nonet", *sys.argv[1:]]),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        corpus={
            "name": corpus.name,
            "source": work.source,
            "fingerprint": text.folder.name,
            "tokenizer": work.tokenizer,
            "bytes": text.bytes,
            "tokens": {split: len(getattr(text, split)) for split in text.bytes},
        },
        slots=tuple(chosen),
        seeds=seeds,
        work=work,
        cells=planned,
        environment=provenance(work.device, work.threads),
        estimate=estimate(planned, steps),
    )
    return plan, steps


def _anew(asked: Asked, scale: Scale) -> tuple[dict[str, Any], Any]:
    """Returns what a plan says of models that are made anew, and the tokenizer."""
    if asked.model is not None:
        raise ValueError(f"--model is for the slots {' and '.join(AROUND)}; the others make their own models")
    size = asked.size or "tiny"
    if size not in LEARNING_RATES:
        raise ValueError(f"--size {size} is not known; choose from {', '.join(LEARNING_RATES)}")
    if asked.lengths is not None and min(asked.lengths) < 2:
        raise ValueError(f"--lengths must be at least 2; got {min(asked.lengths)}")
    return {"size": size, "model": "", "layers": 0}, asked.tokenizer or "bytes"


def _pretrained(asked: Asked, scale: Scale) -> tuple[dict[str, Any], Any]:
    """Returns what a plan says of a pretrained model, and its tokenizer."""
    options = {"--size": asked.size, "--lengths": asked.lengths, "--tokenizer": asked.tokenizer}
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(
            f"{', '.join(given)}: only for models that are made anew; --slots {' and '.join(AROUND)} "
            "compare on the pretrained one that --model names"
        )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = asked.model or DEFAULT
    model, tokenizer = load_pretrained(name)
    longest = getattr(model.config, "max_position_embeddings", None) or scale.window
    if longest < scale.window:
        raise ValueError(f"--model {name} reads {longest} tokens, fewer than one window of {scale.window}")
    place = str(Path(name).resolve()) if Path(name).is_dir() else name
    # A secondary should cost little beside its primary: a tenth of its layers.
    return {"size": "", "model": place, "layers": max(1, model.config.num_hidden_layers // 10)}, tokenizer


def _work(asked: Asked, scale: Scale, common: dict[str, Any]) -> Work:
    """Returns the work of a scale, but for what was asked otherwise."""
    same = {name: value for name, value in asdict(scale).items() if name != "seeds"}
    lengths = asked.lengths or scale.lengths
    contexts = tuple(c for c in scale.contexts if c <= max(lengths, default=c)) or scale.contexts[:1]
    changed = {"tokens": asked.tokens or scale.tokens, "lengths": lengths, "contexts": contexts}
    return Work(**common, **{**same, **changed})


def _fitted(
    budget: float,
    asked: Asked,
    chosen: dict[Slot, list[Part]],
    common: dict[str, Any],
    steps: dict[Combo, Step],
) -> tuple[Work, tuple[int, ...]]:
    """Returns the fullest comparison that a budget affords.

    Fullest is all that a full one measures, with as many seeds as fit, then what a quick one measures. A
    fuller one is taken only if it leaves every model the tokens of a quick one.
    """
    counts = (asked.seeds,) if asked.seeds else (1,) if asked.quick else (3, 2, 1)
    full, quick = scales(chosen)
    offers = [(scale, count) for scale in ((quick,) if asked.quick else (full, quick)) for count in counts]
    for scale, count in offers:
        work, seeds = _work(asked, scale, common), tuple(range(count))
        planned, last = cells(chosen, work, seeds), (scale, count) == offers[-1]
        try:
            tokens = tokens_for(budget, planned, steps, work)
        except ValueError:
            if last:
                raise
            continue
        if last or tokens >= quick.tokens:
            break
    return replace(work, tokens=tokens), seeds


def parse_seconds(text: str) -> float:
    """Returns the seconds that ``90s``, ``10m``, ``2h`` or a plain number of seconds says."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match or float(match[1]) == 0:
        raise ValueError(f"--budget {text!r} is no duration; write 90s, 10m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _long_enough(text: EncodedCorpus, work: Work) -> None:
    for split in ("train", "validation"):
        count = len(getattr(text, split))
        if count < work.window + 1:
            raise ValueError(
                f"the text has {count} tokens for {split}, fewer than one window of {work.window}; "
                "give a longer text"
            )
