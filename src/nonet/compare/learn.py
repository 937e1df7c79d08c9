"""One way for a cell to train: the same text, steps and watch for every model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from nonet.compare.cell import Report
from nonet.compare.measure import Peak, Waiting
from nonet.compare.plan import Cell, Work
from nonet.data import EncodedCorpus, encode_corpus, load_corpus, training_windows, validation_windows
from nonet.registry import Op
from nonet.select import absent, select
from nonet.training import Stopwatch, make_trainer, nats_by_place
from nonet.training.diverged import DivergedError


@dataclass(frozen=True)
class Learned:
    """What a training took: seconds of its steps, peak memory above the model, the optimiser's state.

    ``least_seconds`` is what the steps would have taken at best, had no other program used the machine.
    """

    seconds: float
    least_seconds: float
    peak_bytes: int | None
    optimizer_bytes: int


def read_text(work: Work, tokenizer: Any) -> EncodedCorpus:
    """Returns the tokens of the text; raises ValueError when the text has changed since the plan."""
    text = encode_corpus(load_corpus(work.source), tokenizer)
    if text.folder.name != work.fingerprint:
        name = work.source or "of the standard library"
        raise ValueError(
            f"the text {name} has changed since the comparison was planned; start another with a new --out"
        )
    return text


def learn(
    model: Any,
    items: Any,
    cell: Cell,
    times: int,
    evaluate: Callable[[int, float], None],
    batch: int | None = None,
) -> Learned:
    """Trains a model on items and leaves nothing behind but its weights.

    Args:
        model: its parameters that require a gradient are trained.
        items: of the whole training, in order.
        cell: says learning rate, seed and device.
        times: how often ``evaluate`` is called, with steps and seconds, while the watch is stopped.
        evaluate: looks at the model, in evaluation mode.
        batch: items a step; by default the comparison's.

    Raises:
        DivergedError: a weight is not finite after the training.
    """
    batch = batch or cell.work.batch
    steps = len(items) // batch
    watch = Stopwatch(steps, times, evaluate)
    trainer = make_trainer(
        model,
        items,
        learning_rate=cell.learning_rate,
        batch=batch,
        steps=steps,
        seed=cell.seed,
        device=cell.work.device,
        callbacks=[watch],
    )
    with Peak(torch.device(cell.work.device)) as peak, Waiting() as waiting:
        trainer.train()
    if not all(p.isfinite().all() for p in model.parameters() if p.requires_grad):
        raise DivergedError(f"a weight is not finite after training at learning rate {cell.learning_rate:g}")
    state = sum(
        value.nbytes
        for moments in trainer.optimizer.state.values()
        for value in moments.values()
        if isinstance(value, torch.Tensor)
    )
    trainer.optimizer = None  # its state is not needed any more
    model.zero_grad(set_to_none=True)
    model.eval()
    return Learned(watch.seconds, waiting.share * watch.seconds, peak.bytes, state)


def teach(model: Any, text: EncodedCorpus, cell: Cell, report: Report) -> dict[str, Any]:
    """Teaches a language model the cell's text; returns the curve of its loss and what that took.

    A model without a parameter to train is only measured.

    Raises:
        DivergedError: a weight, or the last loss, is not finite.
    """
    work = cell.work
    scored = validation_windows(text.validation, work.window, work.validation_windows, text.lead)
    per_step = work.batch * work.window
    steps = max(1, work.tokens // per_step) if cell.learning_rate else 0
    curve: list[dict[str, float]] = []

    def evaluate(step: int, seconds: float) -> None:
        bits = text.bits_per_byte(nats_by_place(model, scored, work.batch).mean().item())
        curve.append({"tokens": step * per_step, "seconds": seconds, "bits_per_byte": bits})
        report(0.8 * step / max(1, steps), f"{bits:.2f} bits per byte")

    model.eval()
    evaluate(0, 0.0)
    learned = Learned(0.0, 0.0, None, 0)
    if steps:
        windows = training_windows(
            text.train, work.window, seed=cell.seed, count=steps * work.batch, lead=text.lead
        )
        learned = learn(model, windows, cell, work.evaluations, evaluate)
    check_loss(curve[-1]["bits_per_byte"])
    return {
        "train": {
            "tokens": steps * per_step,
            "seconds": learned.seconds,
            "least_seconds": learned.least_seconds,
            "tokens_per_second": steps * per_step / learned.seconds if steps else None,
            "first_bits_per_byte": curve[0]["bits_per_byte"],
            "curve": curve,
        },
        "validation": {
            "bits_per_byte": curve[-1]["bits_per_byte"],
            "tokens": len(scored) * (work.window - 1),
            "bytes": round(len(scored) * (work.window - 1) * text.bytes_per_token["validation"]),
        },
        "peak_bytes": learned.peak_bytes,
        "optimizer_bytes": learned.optimizer_bytes,
    }


def check_loss(loss: float) -> None:
    """Raises DivergedError when the last loss of a training is not finite."""
    if not math.isfinite(loss):
        raise DivergedError(f"the loss is {loss} after training")


def implementations(ops: Iterable[Op], device: str) -> dict[str, dict[str, str]]:
    """Returns for every op which implementation runs on float32, and why."""
    return {op.name: select(op, device, "float32", missing=absent(op, device))._asdict() for op in ops}
