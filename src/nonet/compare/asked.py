"""From what a user asked for to a plan: the slots, the model, the text, and as much as the budget affords."""

from __future__ import annotations

import functools
import re
import shlex
import sys
import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils import logging

from nonet.compare.afford import Offer, fullest, left_out, offers, suggested
from nonet.compare.cost import Step, estimate, probes
from nonet.compare.learn import read_text
from nonet.compare.plan import AROUND, INSIDE, Combo, Plan, Work, choose
from nonet.compare.provenance import provenance
from nonet.compare.scale import RECALL, Scale, recall_fits, scales, with_less_recall
from nonet.data import EncodedCorpus, encode_corpus, load_corpus
from nonet.hf.pretrained import DEFAULT, load_pretrained
from nonet.model import LEARNING_RATES
from nonet.registry import Part, Slot
from nonet.training.speed import make_prompts


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

    Whatever can be wrong with the options, the model or the text is found before anything is measured.

    Raises:
        ValueError: an option is wrong, the text or the model cannot serve, or a budget is too short.
        OSError: a file cannot be read or written.
    """
    began = time.monotonic()
    budget = _checked(asked)
    chosen = choose(INSIDE if asked.slots is None else asked.slots, asked.methods)
    full, quick, *_ = scales(chosen)
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
    make = functools.partial(_work, asked, common, "mixer" in chosen)
    wanted = Offer(chosen, make(scale), asked.seeds or scale.seeds)
    _long_enough(text, wanted.work)
    with people.status("Measuring one step of every model"):
        steps = probes(replace(wanted, seeds=1).cells())
    if budget is None:
        got = replace(wanted, work=make(_with_recall(scale, wanted.work.tokens)))
    else:
        offered = offers(_choices(chosen, asked), make, quick=asked.quick, seeds=asked.seeds)
        spent = time.monotonic() - began
        fitting, least = fullest(budget - spent, offered, steps)
        if fitting is None:
            raise ValueError(_too_short(asked, least + spent))
        got = fitting
    planned = got.cells()
    plan = Plan(
        command=shlex.join(["nonet", *sys.argv[1:]]),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        corpus={
            "name": corpus.name,
            "source": got.work.source,
            "fingerprint": text.folder.name,
            "tokenizer": got.work.tokenizer,
            "bytes": text.bytes,
            "tokens": {split: len(getattr(text, split)) for split in text.bytes},
        },
        slots=tuple(got.chosen),
        seeds=tuple(range(got.seeds)),
        work=got.work,
        cells=planned,
        environment=provenance(got.work.device, got.work.threads),
        estimate=estimate(planned, steps),
        left_out=tuple(_left_out(asked, wanted, got, text)),
    )
    return plan, steps


def check_sources(plan: Plan) -> None:
    """Raises ValueError or OSError when a stored plan's text, model or device is not what it was."""
    work = plan.work
    if work.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("the comparison was planned on a GPU, and there is none here; start another one")
    read_text(work, load_pretrained(work.model)[1] if work.model else work.tokenizer)


def _checked(asked: Asked) -> float | None:
    """Returns the seconds of the budget; raises ValueError for options that no text or model can serve."""
    if asked.budget and asked.tokens:
        raise ValueError("give --budget or --tokens, not both")
    for name, value in (("--tokens", asked.tokens), ("--seeds", asked.seeds)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    return None if asked.budget is None else parse_seconds(asked.budget)


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


def _work(asked: Asked, common: dict[str, Any], recall: bool, scale: Scale) -> Work:
    """Returns the work of a scale, except for what was asked otherwise."""
    if not recall:
        *_, scale = with_less_recall(scale)
    same = {name: value for name, value in asdict(scale).items() if name != "seeds"}
    lengths = asked.lengths or scale.lengths
    contexts = tuple(c for c in scale.contexts if c <= max(lengths, default=c)) or scale.contexts[:1]
    changed = {"tokens": asked.tokens or scale.tokens, "lengths": lengths, "contexts": contexts}
    return Work(**common, **{**same, **changed})


def _with_recall(scale: Scale, tokens: int) -> Scale:
    """Returns the scale with as much recall as suits models that train on ``tokens``."""
    return next(less for less in with_less_recall(scale) if recall_fits(less, tokens))


def _choices(chosen: dict[Slot, list[Part]], asked: Asked) -> list[dict[Slot, list[Part]]]:
    """Returns what may be compared: all of it, or the first slot alone where the user named nothing."""
    if asked.slots is not None or asked.methods is not None:
        return [chosen]
    first = next(iter(chosen))
    return [chosen, {first: chosen[first]}]


def _left_out(asked: Asked, wanted: Offer, got: Offer, text: EncodedCorpus) -> list[str]:
    """Returns sentences on what the plan does without, and why."""
    lines = []
    if words := left_out(wanted, got):
        rule = f", recall trains on at most {RECALL} times the tokens of a model" if not asked.budget else ""
        option = f"--budget {asked.budget}" if asked.budget else f"--tokens {asked.tokens}"
        lines.append(f"To fit {option}{rule}: {'; '.join(words)}.")
    places, found = got.work.places, len(text.validation)
    if found < places:
        lines.append(
            f"No loss beyond the trained length of {got.work.window} tokens: the validation text has {found} "
            f"tokens, fewer than {places}."
        )
    return lines


def _too_short(asked: Asked, seconds: float) -> str:
    held = [name for name, value in (("--seeds", asked.seeds), ("--lengths", asked.lengths)) if value]
    drop = f"drop {' and '.join(held)}, or " if held else ""
    return (
        f"--budget {asked.budget} is too short: the smallest comparison of these methods takes about "
        f"{seconds:.0f} s here; type --budget {suggested(seconds)}, or {drop}name fewer with --methods"
    )


def parse_seconds(text: str) -> float:
    """Returns the seconds that ``90s``, ``10m``, ``2h`` or a plain number of seconds says."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match or float(match[1]) == 0:
        raise ValueError(f"--budget {text!r} is no duration; write 90s, 10m or 2h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _long_enough(text: EncodedCorpus, work: Work) -> None:
    """Raises ValueError when a part of the text has not what is trained on, measured or continued."""
    for split in ("train", "validation"):
        count = len(getattr(text, split))
        if count < work.window + 1:
            raise ValueError(
                f"the text has {count} tokens for {split}, fewer than one window of {work.window}; "
                "give a longer text"
            )
    if work.texts:
        make_prompts(text, work.texts, torch.device("cpu"))
