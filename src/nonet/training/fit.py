"""A training that shows its progress, keeps checkpoints, stops in order and is resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import Dataset, Subset
from transformers import PreTrainedModel

from nonet.training.checkpoint import Keeper, load_checkpoint, read_about, remove_checkpoint
from nonet.training.diverged import DivergedError
from nonet.training.progress import Bar, interruptible
from nonet.training.randomness import set_random_states
from nonet.training.trainer import Stopwatch, make_trainer
from nonet.writing import check_writable, remove_abandoned, write_folder

DONE, STOPPED = 0, 3
SECONDS_BETWEEN_CHECKPOINTS = 20.0
TELLINGS = 10  # how often in a training its quality is measured for people


@dataclass(frozen=True)
class Fit:
    """How much is trained, how fast, and where the checkpoint lies.

    Attributes:
        out: the directory of the checkpoint, and of the result.
        recipe: plain values that decide the result; a checkpoint of another recipe is not continued.
        steps: optimiser steps of the whole training.
        batch: items a step.
        learning_rate: the peak.
        seed: of dropout; the order of data is the dataset's.
    """

    out: Path
    recipe: dict[str, Any]
    steps: int
    batch: int
    learning_rate: float
    seed: int

    def first_step(self, resume: bool) -> int:
        """Returns how many steps an earlier run has done.

        Raises:
            ValueError: there is no checkpoint to resume, it is another recipe's, or ``out`` is in use.
            OSError: ``out`` cannot be written.
        """
        check_writable(self.out)
        remove_abandoned(self.out)
        about = read_about(self.out)
        empty = not self.out.exists() or not any(self.out.iterdir())
        if resume:
            if about is None:
                hint = (
                    "leave --resume out to begin"
                    if empty
                    else "it holds a finished training, or other files; name another --out to begin a new one"
                )
                raise ValueError(f"--resume: {self.out} holds no checkpoint; {hint}")
            other = [k for k, v in self.recipe.items() if about["recipe"].get(k) != v]
            if other:
                raise ValueError(
                    f"--resume: the checkpoint in {self.out} was made with another {', '.join(other)}; "
                    "give the options of its run, or begin again with another --out"
                )
            return int(about["step"])
        if not empty:
            hint = "continue it with --resume" if about else "name another --out"
            raise ValueError(f"{self.out} is not empty; {hint}")
        return 0

    def run(
        self,
        model: PreTrainedModel,
        items: Dataset[Any],
        first: int,
        measure: Callable[[], str],
        people: Console,
        rests_on: Mapping[str, str],
        collate: Callable[[list[Any]], dict[str, Any]] | None = None,
    ) -> float | None:
        """Trains from step ``first`` on; returns the seconds of training steps, None when stopped early.

        A run that is stopped and resumed gives the same weights as an undisturbed run, to the bit. A run that
        was stopped after its last step takes the weights of its checkpoint and trains no more.

        Args:
            model: what is trained: its parameters that require gradients.
            items: those of the whole training, in order; the first ``first * batch`` are skipped.
            first: steps that an earlier run has done.
            measure: says how good the model is, for people.
            people: where progress is shown.
            rests_on: hashes of the text, the base model and whatever else decides the result, by name.
            collate: makes a batch of items; by default tensors are stacked.

        Raises:
            ValueError: a resumed run rests on something that has changed.
            OSError: the disk has no room for the trained weights, or the training was asked to stop and its
                checkpoint could not be written.
            DivergedError: a loss or a weight is not finite; the last checkpoint stays.
        """
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(device)
        spent = self._check_same(rests_on) if first else 0.0
        if first == self.steps:
            set_random_states(load_checkpoint(self.out, model, None))
            model.eval()
            return spent
        self._check_room(model, people)
        about = {"recipe": self.recipe, "rests_on": dict(rests_on)}
        watch = Stopwatch(self.steps - first, TELLINGS, lambda step, _: bar.tell(_aside(measure)), spent)
        keeper = Keeper(
            self.out,
            about,
            first,
            self.steps,
            SECONDS_BETWEEN_CHECKPOINTS,
            lambda: watch.seconds,
            people.print,
        )
        rest = Subset(items, range(first * self.batch, len(items)))  # type: ignore[arg-type]
        with Bar(people, self.steps, first) as bar, interruptible(keeper):
            trainer = make_trainer(
                model,
                rest,
                learning_rate=self.learning_rate,
                batch=self.batch,
                steps=self.steps,
                seed=self.seed,
                device=device,
                callbacks=[bar, watch, keeper],
                first_step=first,
                collate=collate,
            )
            if first:
                keeper.random = load_checkpoint(self.out, model, trainer.optimizer)
            try:
                trainer.train()
            except DivergedError as error:
                raise self._diverged(error) from error
        model.eval()
        if keeper.stop and first + trainer.state.global_step < self.steps:
            if keeper.failed is not None:
                raise OSError(f"stopped early: {keeper.failed}; {self._kept()}")
            people.print(
                f"Stopped early; continue with the same command and --resume. Checkpoint in {self.out}"
            )
            return None
        return watch.seconds

    def check_finite(self, figures: Mapping[str, Any]) -> None:
        """Raises DivergedError when what was measured after training holds a number that is not finite."""
        for name, value in figures.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise self._diverged(DivergedError(f"{name.replace('_', ' ')} is {value} after training"))

    def finish(self, write: Callable[[Path], object], last: str = "config.json") -> None:
        """Fills ``out`` by ``write``, the file ``last`` after all others, and then removes the checkpoint.

        Raises:
            OSError: a file cannot be written; the message says which checkpoint is kept.
        """
        try:
            write_folder(self.out, write, last)
        except OSError as error:
            raise OSError(f"the result is not written: {error}; {self._kept()}") from error
        remove_checkpoint(self.out)

    def _check_room(self, model: PreTrainedModel, people: Console) -> None:
        """Raises OSError if the result does not fit on the disk; warns if only checkpoints may not fit."""
        result = sum(p.nbytes for p in model.parameters() if p.requires_grad)
        check_writable(self.out, result)
        try:
            check_writable(self.out, 6 * result)  # weights and two moments, twice: the last file and the next
        except OSError as error:
            people.print(f"Checkpoints may not fit: {error}. The run goes on.")

    def _check_same(self, rests_on: Mapping[str, str]) -> float:
        """Returns the seconds of earlier steps; raises ValueError where what they rest on has changed."""
        about = read_about(self.out)
        assert about is not None
        known = about["rests_on"]
        changed = [name for name, value in rests_on.items() if known.get(name) != value]
        if changed:
            raise ValueError(
                f"--resume: {' and '.join(changed)} changed since the checkpoint in {self.out} was made; "
                "restore what it was trained on, or begin again with another --out"
            )
        return float(about["seconds"])

    def _kept(self) -> str:
        about = read_about(self.out)
        if about is None:
            return "nothing is written"
        return f"the checkpoint of step {about['step']} stays in {self.out}; continue it with --resume"

    def _diverged(self, error: DivergedError) -> DivergedError:
        about = read_about(self.out)
        kept = (
            f"the checkpoint of step {about['step']} stays in {self.out}" if about else "nothing is written"
        )
        return DivergedError(
            f"training diverged: {error}; {kept}; begin again with another --out and a lower "
            f"--learning-rate, such as {self.learning_rate / 10:g}"
        )


def steps_of(steps: int | None, tokens: int | None, batch: int, window: int, default: int) -> int:
    """Returns the optimiser steps of a training whose length is given in steps, in tokens, or not at all.

    Raises:
        ValueError: both are given.
    """
    if tokens is None:
        return default if steps is None else steps
    if steps is not None:
        raise ValueError(
            f"--steps {steps} and --tokens {tokens} both say how long to train; give one of them"
        )
    return max(1, tokens // (batch * window))


def _aside(measure: Callable[[], str]) -> str:
    """Measures without a trace in the random numbers of training, which a resumed run measures elsewhere."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        return measure()
