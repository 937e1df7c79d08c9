"""Teaching a pretrained model, from the command's options to a directory with what was learned."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import set_seed
from transformers.utils import logging

from nonet.files import to_json
from nonet.hf.adapters import CONFIG
from nonet.hf.pretrained import load_pretrained
from nonet.screen import console
from nonet.training.finetune import WHOLE, Tuning, adapt, keep
from nonet.training.fingerprint import of_model, of_tokenizer
from nonet.training.fit import DONE, STOPPED, Fit
from nonet.training.lessons import lesson
from nonet.training.progress import busy


def finetune_model(tuning: Tuning, out: Path, *, resume: bool, as_json: bool) -> int:
    """Teaches a pretrained model and writes ``out``: an adapter, or a whole model, with a card.

    A checkpoint of what is trained is kept in ``out`` every twenty seconds, at Ctrl-C after the step in
    flight, and after the last step.

    Returns:
        0 when done, 3 when stopped early.

    Raises:
        ValueError: an option is wrong, a line of the data is, ``out`` holds something else, or training
            diverged.
        OSError: a file cannot be read or written.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    people = console(stderr=True)
    fit = Fit(out, asdict(tuning), tuning.steps, tuning.batch, tuning.rate, tuning.seed)
    first = fit.first_step(resume)
    set_seed(tuning.seed)
    model, tokenizer = load_pretrained(tuning.model, getattr(torch, tuning.dtype))
    rests_on = {"the base model": of_model(model), "the tokenizer": of_tokenizer(tokenizer)}
    model = adapt(model, tokenizer, tuning)
    task = lesson(model, tokenizer, tuning)

    def measured() -> dict[str, float]:
        with busy(people, "measuring on the part kept for the end"):
            return task.measure(True)

    before = measured()
    for name, value in before.items():
        if not math.isfinite(value):
            raise ValueError(
                f"{name.replace('_', ' ')} is {value} before training: the weights of {tuning.model} hold "
                "nan, or cannot be computed with in this dtype; give another model"
            )
    seconds = fit.run(
        task.module,
        task.items,
        first,
        lambda: _say(task.measure(False)),
        people,
        {**rests_on, **task.rests_on},
        task.collate,
    )
    if seconds is None:
        return STOPPED
    after = measured()
    fit.check_finite(after)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    figures = {
        **{f"{name}_before": value for name, value in before.items()},
        **after,
        "trained_parameters": trained,
        "share_of_parameters": trained / sum(p.numel() for p in model.parameters()),
        "steps": tuning.steps,
        "seconds": seconds,
    }
    about = {
        **task.facts,
        "method": tuning.method,
        "learning rate": tuning.rate,
        "seed": tuning.seed,
        **figures,
    }

    def write(place: Path) -> None:
        keep(model, tuning, place, about)
        if tuning.method in WHOLE:
            tokenizer.save_pretrained(place)
        if task.question is not None:
            task.question.save(place)

    fit.finish(write, "config.json" if tuning.method in WHOLE else CONFIG)
    if as_json:
        sys.stdout.write(to_json({"out": str(out), **figures, "tuning": asdict(tuning)}))
    people.print(f"{_say(after)}, {trained:,} parameters trained. Written: {out}")
    return DONE


def _say(figures: dict[str, float]) -> str:
    return ", ".join(f"{value:.3f} {name.replace('_', ' ')}" for name, value in figures.items())
