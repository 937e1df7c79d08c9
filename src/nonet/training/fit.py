"""A training that shows its progress, keeps checkpoints, stops in order and is resumed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.utils.data import Dataset, Subset
from transformers import PreTrainedModel

from nonet.training.checkpoint import Keeper, load_checkpoint, read_about, remove_checkpoint
from nonet.training.progress import Bar, interruptible
from nonet.training.trainer import Stopwatch, make_trainer

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
        """
        about = read_about(self.out)
        if resume:
            if about is None:
                raise ValueError(f"--resume: {self.out} holds no checkpoint; leave --resume out to begin")
            if about["recipe"] != self.recipe:
                other = [k for k, v in self.recipe.items() if about["recipe"].get(k) != v]
                raise ValueError(
                    f"--resume: the checkpoint in {self.out} was made with another {', '.join(other)}"
                )
            return int(about["step"])
        if self.out.exists() and any(self.out.iterdir()):
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
        collate: Callable[[list[Any]], dict[str, Any]] | None = None,
    ) -> float | None:
        """Trains from step ``first`` on; returns the seconds of training steps, None when stopped early.

        Args:
            model: what is trained: its parameters that require gradients.
            items: those of the whole training, in order; the first ``first * batch`` are skipped.
            first: steps that an earlier run has done.
            measure: says how good the model is, for people.
            people: where progress is shown.
            collate: makes a batch of items; by default tensors are stacked.
        """
        keeper = Keeper(self.out, {"recipe": self.recipe}, first, SECONDS_BETWEEN_CHECKPOINTS)
        watch = Stopwatch(self.steps - first, TELLINGS, lambda step, _: bar.tell(measure()))
        rest = Subset(items, range(first * self.batch, len(items)))  # type: ignore[arg-type]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        with (
            Bar(people, self.steps, first) as bar,
            interruptible(keeper),
            tempfile.TemporaryDirectory() as scratch,
        ):
            trainer = make_trainer(
                model.to(device),
                rest,
                directory=Path(scratch),
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
                load_checkpoint(self.out, model, trainer.optimizer)
            trainer.train()
        model.eval()
        if keeper.stop and first + trainer.state.global_step < self.steps:
            people.print(
                f"Stopped early; continue with the same command and --resume. Checkpoint in {self.out}"
            )
            return None
        return watch.seconds

    def finish(self, write: Callable[[Path], None]) -> None:
        """Lets ``write`` fill a directory beside ``out``, and moves all in, the configuration last."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.out.parent, prefix=f".{self.out.name}-") as scratch:
            write(Path(scratch))
            self.out.mkdir(exist_ok=True)
            for file in sorted(Path(scratch).iterdir(), key=lambda f: f.name.endswith("config.json")):
                shutil.move(file, self.out / file.name)
        remove_checkpoint(self.out)
