"""Teaching a pretrained model: adapters, prompts, patterns or every weight, on text, pairs or labels."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers import set_seed
from transformers.utils import logging

from nonet.data import Corpus, encode_corpus, load_corpus, training_windows, validation_windows
from nonet.data.examples import SUFFIXES, Example, Examples, read_examples
from nonet.data.split import SPLITS
from nonet.data.topics import library_topics
from nonet.hf.adapters import save_adapter
from nonet.hf.card import card, code_of_model
from nonet.hf.pretrained import load_pretrained
from nonet.lora import LoraConfig, add_lora
from nonet.prompt import PET, Pattern, PrefixTuning, PromptTuning, PTuning, Verbalizer, add_prompt
from nonet.shapes import check_choice, check_positive
from nonet.training.fit import DONE, STOPPED, Fit
from nonet.training.pairs import Pairs, in_passes, padded
from nonet.training.quality import nats_by_place

# What each way of tuning learns at by default, with AdamW: customary values, not searched for any model.
RATES = {
    "full": 5e-5,
    "lora": 5e-4,
    "dora": 5e-4,
    "prompt": 1e-2,
    "prefix": 1e-2,
    "ptuning": 1e-3,
    "pet": 2e-5,
}
WHOLE = ("full", "pet")  # what these learn is a model of its own
PATTERN = "{text}\nLabel: {blank}"
_SCORED = 32  # windows of text whose loss is measured


@dataclass(frozen=True)
class Tuning:
    """All that decides what a fine-tuning gives."""

    model: str
    source: str | None
    method: str
    steps: int
    window: int
    batch: int
    learning_rate: float | None
    seed: int
    rank: int = 8
    length: int = 20
    pattern: str = PATTERN
    few: int | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_choice("method", self.method, RATES)
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        check_positive(steps=self.steps, window=self.window, batch=self.batch)

    @property
    def rate(self) -> float:
        """The learning rate asked for, or the method's own."""
        return RATES[self.method] if self.learning_rate is None else self.learning_rate


@dataclass(frozen=True)
class Lesson:
    """What is trained, on what, and how good it is found to be.

    Attributes:
        module: what the Trainer trains: the model, or PET around it.
        items: of the whole training, in order; anything with a length and places.
        measure: returns figures on validation examples; ``final`` on those kept for the end.
        collate: makes a batch of items.
    """

    module: nn.Module
    items: Any
    measure: Callable[[bool], dict[str, float]]
    collate: Callable[[list[Any]], dict[str, Any]] | None = None


def adapter(tuning: Tuning) -> LoraConfig | PromptTuning | PrefixTuning | PTuning | None:
    """Returns the adapter that the method trains, None where it trains the model's own weights."""
    if tuning.method in ("lora", "dora"):
        variants = ("dora",) if tuning.method == "dora" else ()
        return LoraConfig(rank=tuning.rank, alpha=2.0 * tuning.rank, variants=variants, seed=tuning.seed)
    prompts = {"prompt": PromptTuning, "prefix": PrefixTuning, "ptuning": PTuning}
    if tuning.method in prompts:
        return prompts[tuning.method](length=tuning.length, seed=tuning.seed)
    return None


def adapt(model: Any, tokenizer: Any, tuning: Tuning) -> Any:
    """Puts what the method trains on a model, everything else frozen; returns the model."""
    config = adapter(tuning)
    if config is None:
        return train_every_weight(model)
    return add_lora(model, config) if isinstance(config, LoraConfig) else add_prompt(model, config, tokenizer)


def train_every_weight(model: Any) -> Any:
    """Returns the model with all of it to be trained: full fine-tuning."""
    return model.requires_grad_(True)


def train_nothing(model: Any) -> Any:
    """Returns the model frozen, as it is."""
    return model.requires_grad_(False)


def keep(model: Any, tuning: Tuning, place: Path, about: dict[str, Any]) -> None:
    """Writes what was learned, an adapter or a whole model, with a card that says what it is about."""
    if tuning.method in WHOLE:
        model.save_pretrained(place)
        text = card(f"{tuning.model}, fine-tuned with nonet", about, code_of_model(model))
        (place / "README.md").write_text(text, encoding="utf-8")
    else:
        save_adapter(model, place, about=about)


def lesson(model: Any, tokenizer: Any, tuning: Tuning) -> tuple[Lesson, dict[str, Any]]:
    """Returns what is to be done, and the facts of its data for the card.

    Raises:
        ValueError: the data cannot serve the method, or a line of it is wrong.
        FileNotFoundError: there is no such data.
    """
    if tuning.source is None and tuning.method == "pet":
        return _examples(model, tokenizer, tuning, library_topics(few=tuning.few))
    if tuning.source is None or Path(tuning.source).suffix not in SUFFIXES:
        if tuning.few is not None:
            raise ValueError(f"few={tuning.few} chooses among examples; a text has none")
        return _text(model, tokenizer, tuning, load_corpus(tuning.source))
    examples = read_examples(tuning.source, few=tuning.few)
    if examples.columns == ("text",):
        documents = {s: [e.text.encode() for e in getattr(examples, s)] for s in SPLITS}
        return _text(model, tokenizer, tuning, Corpus(examples.name, documents))
    return _examples(model, tokenizer, tuning, examples)


def _text(model: Any, tokenizer: Any, tuning: Tuning, corpus: Corpus) -> tuple[Lesson, dict[str, Any]]:
    _refuse_pet(tuning)
    text = encode_corpus(corpus, tokenizer)
    items = training_windows(text.train, tuning.window, tuning.seed, tuning.steps * tuning.batch)
    scored = {
        False: validation_windows(text.validation, tuning.window, _SCORED),
        True: validation_windows(text.test, tuning.window, 4 * _SCORED),
    }

    def measure(final: bool) -> dict[str, float]:
        nats = nats_by_place(model, scored[final], tuning.batch).mean().item()
        return {"bits_per_byte": text.bits_per_byte(nats, "test" if final else "validation")}

    return Lesson(model, items, measure), {"text": corpus.name, "fingerprint": corpus.fingerprint}


def _examples(
    model: Any, tokenizer: Any, tuning: Tuning, examples: Examples
) -> tuple[Lesson, dict[str, Any]]:
    facts = {"examples": f"{len(examples.train)} of {examples.name}"}
    count = tuning.steps * tuning.batch
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if not examples.labels:
        _refuse_pet(tuning)

        def pairs(part: tuple[Example, ...], count: int | None = None) -> Pairs:
            said = [(e.text, e.completion or "") for e in part]
            return Pairs(said, tokenizer, tuning.window, tuning.seed, count)

        held = {False: pairs(examples.validation[:_SCORED]), True: pairs(examples.test)}

        def measure(final: bool) -> dict[str, float]:
            return {"nats_per_token": _nats(model, held[final], tuning.batch, pad)}

        return Lesson(model, pairs(examples.train, count), measure, padded(pad)), facts
    if tuning.method == "full":
        raise ValueError(
            "method='full' learns text, or prompts with completions; for labels choose pet, or an adapter"
        )
    words = Verbalizer({label: [label] for label in examples.labels})
    pet = PET(model, tokenizer, Pattern(tuning.pattern), words, max_length=tuning.window)

    def accuracy(final: bool) -> dict[str, float]:
        part = examples.test if final else examples.validation[:_SCORED]
        found = pet.predict([e.text for e in part])
        return {"accuracy": sum(a == e.label for a, e in zip(found, part, strict=True)) / len(part)}

    facts |= {"labels": ", ".join(examples.labels), "pattern": json.dumps(tuning.pattern)}
    items = [examples.train[i] for i in in_passes(len(examples.train), count, tuning.seed)]

    def collate(batch: list[Example]) -> dict[str, Any]:
        return {"examples": [e.text for e in batch], "labels": [e.label for e in batch]}

    return Lesson(pet, items, accuracy, collate), facts


def _refuse_pet(tuning: Tuning) -> None:
    if tuning.method == "pet":
        raise ValueError("method='pet' needs labelled examples: lines with text and label")


@torch.no_grad()
def _nats(model: Any, pairs: Pairs, batch: int, pad: int) -> float:
    """Returns the mean cross-entropy of the tokens of completions."""
    total = count = 0.0
    for first in range(0, len(pairs), batch):
        made = padded(pad)([pairs[i] for i in range(first, min(len(pairs), first + batch))])
        made = {key: value.to(model.device) for key, value in made.items()}
        tokens = int((made["labels"][:, 1:] >= 0).sum())
        total += model(**made, use_cache=False).loss.item() * tokens
        count += tokens
    return total / count


def finetune_model(tuning: Tuning, out: Path, *, resume: bool, as_json: bool) -> int:
    """Teaches a pretrained model and writes ``out``: an adapter, or a whole model, with a card.

    A checkpoint of what is trained is kept in ``out`` every twenty seconds, and at Ctrl-C after the step in
    flight.

    Returns:
        0 when done, 3 when stopped early.

    Raises:
        ValueError: an option is wrong, a line of the data is, or ``out`` holds something else.
        OSError: a file cannot be read or written.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    people = Console(stderr=True)
    fit = Fit(out, asdict(tuning), tuning.steps, tuning.batch, tuning.rate, tuning.seed)
    first = fit.first_step(resume)
    set_seed(tuning.seed)
    model, tokenizer = load_pretrained(tuning.model, getattr(torch, tuning.dtype))
    model = adapt(model, tokenizer, tuning)
    task, facts = lesson(model, tokenizer, tuning)
    before = {} if first else task.measure(True)
    seconds = fit.run(task.module, task.items, first, lambda: _say(task.measure(False)), people, task.collate)
    if seconds is None:
        return STOPPED
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    after = task.measure(True)
    figures = {
        **{f"{name}_before": value for name, value in before.items()},
        **after,
        "trained_parameters": trained,
        "share_of_parameters": trained / sum(p.numel() for p in model.parameters()),
        "steps": tuning.steps,
        "seconds": seconds,
    }
    about = {**facts, "method": tuning.method, "learning rate": tuning.rate, "seed": tuning.seed, **figures}

    def write(place: Path) -> None:
        keep(model, tuning, place, about)
        if tuning.method in WHOLE:
            tokenizer.save_pretrained(place)

    fit.finish(write)
    if as_json:
        sys.stdout.write(json.dumps({"out": str(out), **figures, "tuning": asdict(tuning)}, indent=1) + "\n")
    people.print(f"{_say(after)}, {trained:,} parameters trained. Written: {out}")
    return DONE


def _say(figures: dict[str, float]) -> str:
    return ", ".join(f"{value:.3f} {name.replace('_', ' ')}" for name, value in figures.items())
