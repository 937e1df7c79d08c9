"""Training a language model on a text, from the text to a directory that Transformers loads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import set_seed
from transformers.utils import logging

from nonet.data import encode_corpus, load_corpus, load_tokenizer, training_windows, validation_windows
from nonet.files import to_json
from nonet.hf.card import card, code_of_model
from nonet.model import LEARNING_RATES, NonetConfig, NonetForCausalLM, preset
from nonet.model.presets import SIZES
from nonet.registry import part
from nonet.screen import console
from nonet.shapes import check_positive
from nonet.training.fingerprint import of_tokenizer
from nonet.training.fit import DONE, STOPPED, Fit
from nonet.training.quality import nats_by_place


@dataclass(frozen=True)
class Recipe:
    """All that decides what a training gives: the text, the model, the budget, the seed."""

    source: str | None
    pattern: str
    position: str
    linear: str
    residual: str
    size: str
    tokens: int
    window: int
    batch: int
    learning_rate: float | None
    tokenizer: str
    seed: int

    def __post_init__(self) -> None:
        check_positive(tokens=self.tokens, window=self.window, batch=self.batch)
        check_positive(learning_rate=self.learning_rate)

    @property
    def steps(self) -> int:
        """Optimiser steps that the tokens make."""
        return max(1, self.tokens // (self.batch * self.window))

    def config(self, vocab_size: int, eos: int | None) -> NonetConfig:
        """Returns the model's configuration."""
        return preset(
            self.size,
            vocab_size=vocab_size,
            pattern=self.pattern,
            position=self.position,
            linear=self.linear,
            residual=self.residual,
            max_position_embeddings=self.window,
            eos_token_id=eos,
            pad_token_id=eos,
        )

    def rate(self, config: NonetConfig) -> float:
        """Returns the learning rate: the one asked for, or one suited to the size and every slot."""
        if self.learning_rate is not None:
            return self.learning_rate
        rate = LEARNING_RATES[self.size] * part("linear", self.linear).learning_rate
        return rate * min(mixer.learning_rate for mixer in config.mixers())


def train_model(recipe: Recipe, out: Path, *, resume: bool, as_json: bool) -> int:
    """Trains what the recipe says and writes ``out``: weights, configuration, tokenizer, model card.

    A checkpoint is kept in ``out`` every twenty seconds, at Ctrl-C after the step in flight, and after the
    last step; a training that is resumed from it gives the weights of one that was never stopped.

    Returns:
        0 when done, 3 when stopped early.

    Raises:
        ValueError: an option is wrong, the text is too short, ``out`` holds something else, or training
            diverged.
        OSError: a file cannot be read or written.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    people = console(stderr=True)
    tokenizer = load_tokenizer(recipe.tokenizer)
    corpus = load_corpus(recipe.source)
    text = encode_corpus(corpus, "bytes" if recipe.tokenizer == "bytes" else tokenizer)
    config = recipe.config(text.vocab_size, text.eos_id)
    fit = Fit(out, asdict(recipe), recipe.steps, recipe.batch, recipe.rate(config), recipe.seed)
    first = fit.first_step(resume)
    for note in _notes(recipe, config):
        people.print(note)
    set_seed(recipe.seed)
    model = NonetForCausalLM(config)
    count = recipe.steps * recipe.batch
    windows = training_windows(text.train, recipe.window, recipe.seed, count, text.lead)
    scored = validation_windows(text.validation, recipe.window, 64, text.lead)

    def quality() -> float:
        return text.bits_per_byte(nats_by_place(model, scored, recipe.batch).mean().item())

    rests_on = {"the text": corpus.fingerprint, "the tokenizer": of_tokenizer(tokenizer)}
    seconds = fit.run(model, windows, first, lambda: f"{quality():.3f} bits per byte", people, rests_on)
    if seconds is None:
        return STOPPED
    figures = {
        "validation_bits_per_byte": quality(),
        "parameters": model.num_parameters(),
        "training_tokens": recipe.steps * recipe.batch * recipe.window,
        "seconds": seconds,
    }
    fit.check_finite(figures)

    def write(place: Path) -> None:
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        (place / "README.md").write_text(_card(model, recipe, text, figures), encoding="utf-8")

    fit.finish(write)
    if as_json:
        sys.stdout.write(to_json({"model": str(out), **figures, "recipe": asdict(recipe)}))
    people.print(f"{figures['validation_bits_per_byte']:.3f} bits per byte on validation text. Model: {out}")
    return DONE


def _notes(recipe: Recipe, config: NonetConfig) -> Iterator[str]:
    """Yields what differs from what was asked for, or has no effect."""
    size = SIZES[recipe.size]["num_hidden_layers"]
    if config.num_hidden_layers != size:
        yield (
            f"The model has {config.num_hidden_layers} layers, to repeat the pattern {recipe.pattern} whole; "
            f"size {recipe.size} has {size}."
        )
    if config.idle_position:
        yield (
            f"Position {recipe.position} has no effect: no mixer of the pattern {recipe.pattern} reads it, "
            "since a recurrence knows order by itself."
        )


def _card(model: Any, recipe: Recipe, text: Any, figures: dict[str, Any]) -> str:
    facts = {
        "text": text.name,
        "text fingerprint": text.folder.name,
        "tokenizer": recipe.tokenizer,
        "mixers": recipe.pattern,
        "position, linear, residual": f"{recipe.position}, {recipe.linear}, {recipe.residual}",
        "parameters": f"{figures['parameters']:,}",
        "training tokens": f"{figures['training_tokens']:,} in sequences of {recipe.window}",
        "learning rate": f"{recipe.rate(model.config):g}",
        "seed": recipe.seed,
        "validation bits per byte": f"{figures['validation_bits_per_byte']:.4f}",
        "seconds of training": f"{figures['seconds']:.1f}",
    }
    return card(f"A {recipe.size} language model of nonet", facts, code_of_model(model))
