"""Training a small model to write from what a large one has read, and measuring what that is worth."""

from __future__ import annotations

import functools
import statistics
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from transformers import set_seed
from transformers.utils import logging

from nonet.data import EncodedCorpus, encode_corpus, load_corpus, training_windows, validation_windows
from nonet.files import to_json
from nonet.hf.card import card, code_of_tandem
from nonet.hf.positions import check_room, room
from nonet.hf.pretrained import load_pretrained
from nonet.screen import console
from nonet.shapes import check_choice, check_positive
from nonet.tandem import Tandem, TandemConfig, frequent_tokens, secondary_from, stream_weights
from nonet.tandem.shortlist import Shortlist
from nonet.training.fingerprint import of_model, of_tokenizer
from nonet.training.fit import DONE, STOPPED, Fit
from nonet.training.progress import busy
from nonet.training.speed import PROMPT, Speed, Way, make_prompts, speeds, write_alone

# What the secondary of each pairing learns at by default, with AdamW; not searched.
RATES = {"tandem": 5e-4, "speculative": 5e-4, "assisted": 5e-4}
_COUNTED = 1 << 22  # tokens among which the frequent ones are found
_SCORED = 16  # windows whose loss is measured
_PROMPTS, _NEW = 6, 64  # texts that are continued in the end, and the tokens that are new


@dataclass(frozen=True)
class Pairing:
    """All that decides what the training of a tandem gives."""

    model: str
    source: str | None
    layers: int
    steps: int
    window: int
    batch: int
    learning_rate: float | None
    seed: int
    block: int = 4
    loss: str = "distil"
    reading: str = "states"
    shortlist: int = 8192
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        check_positive(steps=self.steps, batch=self.batch, layers=self.layers, shortlist=self.shortlist)
        check_positive(learning_rate=self.learning_rate)

    @property
    def rate(self) -> float:
        """The learning rate asked for, or a tandem's own."""
        return RATES["tandem"] if self.learning_rate is None else self.learning_rate


def make_tandem(primary: Any, pairing: Pairing) -> Tandem:
    """Returns a tandem whose secondary begins as layers of the primary, evenly spaced up to the last.

    Each reads states of its own depth, so that it begins on the primary's own keys and values.

    Raises:
        ValueError: the primary has no more layers than the secondary is to have, or fewer positions than a
            window has tokens.
    """
    check_room(primary, pairing.window, "window")
    depth = primary.config.num_hidden_layers
    if pairing.layers >= depth:
        raise ValueError(f"layers must be fewer than the primary's {depth}; got {pairing.layers}")
    steps = max(1, pairing.layers - 1)
    taken = [depth - 1 - round(i * (depth - 1) / steps) for i in reversed(range(pairing.layers))]
    states = pairing.reading == "states"
    options = TandemConfig(
        block=pairing.block,
        layers=tuple(taken) if states else tuple(i + 1 for i in taken),
        loss=pairing.loss,
        reading=pairing.reading,
        start="identity",
        seed=pairing.seed,
    )
    return Tandem(primary, secondary_from(primary, taken), options)


@torch.no_grad()
def tandem_loss(tandem: Tandem, windows: Any) -> float:
    """Returns a tandem's mean loss in nats over windows, each on its own."""
    ids = (windows[i]["input_ids"][None].to(tandem.primary.device) for i in range(len(windows)))
    return statistics.fmean(tandem(one, labels=one).loss.item() for one in ids)


def make_shortlist(tandem: Tandem, text: EncodedCorpus, size: int) -> Shortlist:
    """Returns the most frequent tokens of the beginning of a text for training, to draft from."""
    ids = torch.from_numpy(text.train[:_COUNTED].astype(np.int64))
    return Shortlist(tandem.secondary, frequent_tokens(ids, size))


def train_tandem(pairing: Pairing, out: Path, *, resume: bool, as_json: bool) -> int:
    """Trains a secondary that begins as layers of the primary, and writes it with its projections.

    A checkpoint is kept in ``out`` every twenty seconds, at Ctrl-C after the step in flight, and after the
    last step.

    Returns:
        0 when done, 3 when stopped early.

    Raises:
        ValueError: an option is wrong, ``out`` holds something else, or training diverged.
        OSError: a file cannot be read or written.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    people = console(stderr=True)
    steps, batch = pairing.steps, pairing.batch
    fit = Fit(out, asdict(pairing), steps, batch, pairing.rate, pairing.seed)
    first = fit.first_step(resume)
    set_seed(pairing.seed)
    primary, tokenizer = load_pretrained(pairing.model, getattr(torch, pairing.dtype))
    rests_on = {"the base model": of_model(primary), "the tokenizer": of_tokenizer(tokenizer)}
    tandem = make_tandem(primary, pairing)
    corpus = load_corpus(pairing.source)
    text = encode_corpus(corpus, tokenizer)
    items = training_windows(text.train, pairing.window, pairing.seed, steps * batch, text.lead)
    scored = validation_windows(text.validation, pairing.window, _SCORED, text.lead)

    seconds = fit.run(
        tandem,
        items,
        first,
        lambda: f"loss {tandem_loss(tandem, scored):.3f}",
        people,
        {**rests_on, "the text": corpus.fingerprint},
    )
    if seconds is None:
        return STOPPED
    loss = {"validation_loss": tandem_loss(tandem, scored)}
    fit.check_finite(loss)
    found = _speeds(tandem, text, pairing, people)
    figures = {
        **loss,
        "steps": steps,
        "seconds": seconds,
        "trained_parameters": sum(p.numel() for p in tandem.parameters() if p.requires_grad),
        **{f"{name.replace(' ', '_')}": asdict(speed) for name, speed in found.items()},
    }

    def write(place: Path) -> None:
        tandem.save_pretrained(place)
        facts = {**asdict(pairing), **figures}
        text = card(f"A tandem for {pairing.model}", facts, code_of_tandem(pairing.model), library="nonet")
        (place / "README.md").write_text(text, encoding="utf-8")

    fit.finish(write)
    if as_json:
        sys.stdout.write(to_json({"out": str(out), **figures, "pairing": asdict(pairing)}))
    with_it = found["tandem"]
    people.print(
        f"{with_it.tokens_per_second:.1f} tokens a second, {with_it.ratio:.2f} times the primary alone; "
        f"{100 * (with_it.acceptance or 0):.0f} % of drafts accepted. Written: {out}"
    )
    return DONE


def _speeds(tandem: Tandem, text: EncodedCorpus, pairing: Pairing, people: Console) -> dict[str, Speed]:
    """Returns how fast the tandem writes, and the primary alone; says after each text that it goes on."""
    primary = tandem.primary
    few = make_shortlist(tandem, text, pairing.shortlist)
    for model in (primary, tandem.secondary):  # the primary alone gains from it, too
        stream_weights(model)
    most = room(primary)
    length = PROMPT if most is None else min(PROMPT, most // 2)
    new = _NEW if most is None else max(1, min(_NEW, most - length - pairing.block))
    ways: dict[str, Way] = {
        "primary alone": functools.partial(write_alone, primary, new=new),
        "tandem": functools.partial(tandem.generate, max_new_tokens=new, shortlist=few, return_stats=True),
    }
    prompts = make_prompts(text, _PROMPTS, primary.device, length)
    with busy(people, "timing texts") as say:
        return speeds(ways, prompts, lambda done: say(f"timing texts: {done} of {len(prompts)}"))
