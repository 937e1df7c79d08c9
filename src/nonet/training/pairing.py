"""Training a small model to write from what a large one has read, and measuring what that is worth."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from transformers import set_seed
from transformers.utils import logging

from nonet.data import encode_corpus, load_corpus, training_windows, validation_windows
from nonet.hf.pretrained import load_pretrained
from nonet.shapes import check_choice, check_positive
from nonet.tandem import Tandem, TandemConfig, frequent_tokens, secondary_from, speculative_generate
from nonet.tandem.rounds import Stats
from nonet.tandem.shortlist import Shortlist
from nonet.training.fit import DONE, STOPPED, Fit

Way = Callable[[Tensor], tuple[Tensor, Stats]]  # a prompt (1, T) -> the text (1, T + n), and what was done
_SCORED = 16  # windows whose loss is measured
_PROMPTS, _PROMPT, _NEW = 6, 64, 64  # texts that are continued in the end, their tokens, and the new ones


@dataclass(frozen=True)
class Pairing:
    """All that decides what the training of a tandem gives."""

    model: str
    source: str | None
    layers: int
    block: int
    loss: str
    reading: str
    steps: int
    window: int
    batch: int
    learning_rate: float
    shortlist: int
    dtype: str
    seed: int

    def __post_init__(self) -> None:
        check_choice("dtype", self.dtype, ("float32", "bfloat16"))
        check_positive(steps=self.steps, batch=self.batch, layers=self.layers, shortlist=self.shortlist)


@dataclass(frozen=True)
class Speed:
    """How fast one way to write was.

    Attributes:
        tokens_per_second: median over the texts.
        ratio: median over the texts of the time of the first way over this one's.
        low: first quartile of the ratios.
        high: third quartile.
        identical: of how many texts the tokens are those of the first way.
        texts: how many were written.
        acceptance: drafted tokens that the primary accepted; None where none was drafted.
        accepted_at: the same for each place in the block, given that its place was reached.
        tokens_per_round: tokens that one pass of the primary gives.
    """

    tokens_per_second: float
    ratio: float
    low: float
    high: float
    identical: int
    texts: int
    acceptance: float | None
    accepted_at: tuple[float, ...]
    tokens_per_round: float


def speeds(ways: Mapping[str, Way], prompts: Sequence[Tensor]) -> dict[str, Speed]:
    """Times ways to continue texts, in turns within each text; the first way is what others are held to.

    Args:
        ways: by name, the primary alone first.
        prompts: ``(1, T)`` each.
    """
    for way in ways.values():
        way(prompts[0])  # what is set up once is not timed
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    texts: dict[str, list[Tensor]] = {name: [] for name in ways}
    done: dict[str, list[Stats]] = {name: [] for name in ways}
    for prompt in prompts:
        for name, way in ways.items():
            began = time.perf_counter()
            ids, stats = way(prompt)
            seconds[name].append(time.perf_counter() - began)
            texts[name].append(ids)
            done[name].append(stats)
    first = next(iter(ways))
    return {
        name: _speed(
            seconds[name],
            [a / b for a, b in zip(seconds[first], seconds[name], strict=True)],
            [torch.equal(a, b) for a, b in zip(texts[first], texts[name], strict=True)],
            done[name],
        )
        for name in ways
    }


def _speed(seconds: list[float], ratios: list[float], same: list[bool], done: list[Stats]) -> Speed:
    several = ratios if len(ratios) > 1 else ratios * 2
    low, middle, high = statistics.quantiles(several, n=4, method="inclusive")
    longest = max(len(stats.drafted_at) for stats in done)
    at = [
        tuple(sum(counts[i] for counts in kind if i < len(counts)) for i in range(longest))
        for kind in ([s.drafted_at for s in done], [s.accepted_at for s in done])
    ]
    reached = (at[0][0], *at[1][:-1]) if longest else ()
    drafted = sum(at[0])
    return Speed(
        statistics.median(s.tokens / t for s, t in zip(done, seconds, strict=True)),
        middle,
        low,
        high,
        sum(same),
        len(same),
        sum(at[1]) / drafted if drafted else None,
        tuple(a / r if r else 0.0 for a, r in zip(at[1], reached, strict=True)),
        sum(s.tokens for s in done) / sum(s.primary_calls for s in done),
    )


def train_tandem(pairing: Pairing, out: Path, *, resume: bool, as_json: bool) -> int:
    """Trains a secondary that begins as the primary's lower layers, and writes it with its projections.

    A checkpoint is kept in ``out`` every twenty seconds, and at Ctrl-C after the step in flight.

    Returns:
        0 when done, 3 when stopped early.

    Raises:
        ValueError: an option is wrong, or ``out`` holds something else.
        OSError: a file cannot be read or written.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    people = Console(stderr=True)
    steps, batch = pairing.steps, pairing.batch
    fit = Fit(out, asdict(pairing), steps, batch, pairing.learning_rate, pairing.seed)
    first = fit.first_step(resume)
    options = TandemConfig(
        block=pairing.block,
        loss=pairing.loss,
        reading=pairing.reading,
        start="identity" if pairing.reading == "states" else "random",
        seed=pairing.seed,
    )
    set_seed(pairing.seed)
    primary, tokenizer = load_pretrained(pairing.model, getattr(torch, pairing.dtype))
    tandem = Tandem(primary, secondary_from(primary, pairing.layers), options)
    text = encode_corpus(load_corpus(pairing.source), tokenizer)
    items = training_windows(text.train, pairing.window, pairing.seed, steps * batch)
    scored = validation_windows(text.validation, pairing.window, _SCORED)

    def nats() -> float:
        windows = [scored[i]["input_ids"][None].to(primary.device) for i in range(len(scored))]
        with torch.no_grad():
            return statistics.fmean(tandem(ids, labels=ids).loss.item() for ids in windows)

    seconds = fit.run(tandem, items, first, lambda: f"loss {nats():.3f}", people)
    if seconds is None:
        return STOPPED
    tests = validation_windows(text.test, _PROMPT, _PROMPTS)
    prompts = [tests[i]["input_ids"][None].to(primary.device) for i in range(len(tests))]
    few = Shortlist(
        tandem.secondary, frequent_tokens(torch.from_numpy(text.train.astype(np.int64)), pairing.shortlist)
    )
    found = speeds(
        {
            "primary alone": lambda ids: speculative_generate(
                primary, None, ids, max_new_tokens=_NEW, return_stats=True
            ),
            "tandem": lambda ids: tandem.generate(ids, max_new_tokens=_NEW, shortlist=few, return_stats=True),
        },
        prompts,
    )
    figures = {
        "validation_loss": nats(),
        "steps": steps,
        "seconds": seconds,
        "trained_parameters": sum(p.numel() for p in tandem.parameters() if p.requires_grad),
        **{f"{name.replace(' ', '_')}": asdict(speed) for name, speed in found.items()},
    }

    def write(place: Path) -> None:
        tandem.save_pretrained(place)
        lines = "\n".join(f"| {k} | {v} |" for k, v in {**asdict(pairing), **figures}.items())
        (place / "README.md").write_text(f"# A tandem for {pairing.model}\n\n| | |\n| --- | --- |\n{lines}\n")

    fit.finish(write)
    if as_json:
        sys.stdout.write(
            json.dumps({"out": str(out), **figures, "pairing": asdict(pairing)}, indent=1) + "\n"
        )
    with_it = found["tandem"]
    people.print(
        f"{with_it.tokens_per_second:.1f} tokens a second, {with_it.ratio:.2f} times the primary alone; "
        f"{100 * (with_it.acceptance or 0):.0f} % of drafts accepted. Written: {out}"
    )
    return DONE


def write_in_tandem(
    model: str,
    directory: Path,
    prompt: str,
    *,
    tokens: int,
    block: int,
    temperature: float,
    top_p: float,
    dtype: str,
    seed: int,
    as_json: bool,
) -> None:
    """Writes the continuation of a prompt, drafted by a tandem's secondary and verified by its primary.

    Args:
        model: the primary, as :func:`nonet.hf.load_pretrained` takes it.
        directory: of the tandem.
        prompt: the text to continue.
        tokens: how many to write at most.
        block: tokens to draft in a round.
        temperature: 0 takes the likeliest token each time.
        top_p: sample from the likeliest tokens that together have this probability.
        dtype: of the weights.
        seed: of sampling.
        as_json: one document with the text and figures in place of a stream.

    Raises:
        ValueError: the model or the tandem cannot be read, or do not fit each other.
    """
    from transformers import TextStreamer

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    primary, tokenizer = load_pretrained(model, getattr(torch, dtype))
    tandem = Tandem.from_pretrained(directory, primary)
    set_seed(seed)
    ids = tokenizer(prompt or tokenizer.eos_token, return_tensors="pt")["input_ids"].to(primary.device)
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature else {}
    )
    if not as_json:
        sys.stdout.write(prompt)
    began = time.perf_counter()
    out, stats = tandem.generate(
        ids,
        max_new_tokens=tokens,
        block=block,
        streamer=None if as_json else TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
        return_stats=True,
        **sampling,
    )
    seconds = time.perf_counter() - began
    if as_json:
        figures = {
            "text": tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True),
            "tokens": stats.tokens,
            "seconds": seconds,
            "tokens_per_second": stats.tokens / seconds,
            "drafted": stats.drafted,
            "accepted": stats.accepted,
            "rounds": stats.rounds,
            "seed": seed,
        }
        sys.stdout.write(json.dumps({"prompt": prompt, **figures}, indent=1) + "\n")
