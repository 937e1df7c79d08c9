"""One way to train: Transformers' Trainer, with an optimiser suited to every slot."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from nonet.training.diverged import DivergedError


class InOrder(Trainer):
    """A Trainer that takes the data in the order of its dataset, and stops at a loss that is not finite."""

    first_step = 0  # steps that an earlier run has done
    use_cache: bool | None = None  # the model's own setting

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Trains, and gives the model its setting of ``use_cache`` back, which Trainer switches off."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.use_cache is not None:
                self.model.config.use_cache = self.use_cache

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(self.train_dataset if train_dataset is None else train_dataset)

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the loss of a step; raises DivergedError when it is not finite."""
        loss = super().training_step(*args, **kwargs)
        _check_finite("the loss", loss, self.first_step + self.state.global_step, self.args)
        return loss


class Finite(TrainerCallback):
    """Stops before a gradient that is not finite reaches the weights.

    Args:
        first_step: steps that an earlier run has done.
    """

    def __init__(self, first_step: int) -> None:
        self.first_step = first_step

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises DivergedError when the norm of all gradients is not finite."""
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        _check_finite("the gradient", norm, self.first_step + state.global_step, args)


def _check_finite(what: str, value: Any, done: int, args: TrainingArguments) -> None:
    number = float(value)
    if not math.isfinite(number):
        rate = f"the learning rate {args.learning_rate:g}"
        raise DivergedError(f"{what} is {number} at step {done + 1}, with {rate}")


def make_trainer(
    model: PreTrainedModel,
    train: Dataset[Any],
    *,
    learning_rate: float,
    batch: int,
    steps: int,
    seed: int,
    device: str,
    callbacks: list[TrainerCallback],
    first_step: int = 0,
    collate: Callable[[list[Any]], dict[str, Any]] | None = None,
) -> Trainer:
    """Returns a Trainer with AdamW and a cosine schedule after a short warm-up.

    Args:
        model: what is trained.
        train: items with ``input_ids`` and ``labels``.
        learning_rate: the peak.
        batch: sequences a step, on every device.
        steps: optimiser steps of the whole training.
        seed: of dropout; the order of data is the dataset's.
        device: ``"cpu"``, or anything else for the accelerator that Trainer finds.
        callbacks: added to Trainer's own.
        first_step: steps that an earlier run has done, when ``train`` begins after them.
        collate: makes a batch of items; by default tensors are stacked.

    Training raises :class:`DivergedError` before a loss or a gradient that is not finite changes a weight.
    """
    settings = TrainingArguments(
        output_dir=".",  # Trainer makes this folder, and writes nothing there
        max_steps=steps - first_step,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        seed=seed,
        data_seed=seed,
        use_cpu=device == "cpu",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=device != "cpu",
        save_strategy="no",
        max_grad_norm=1.0,
    )
    factor = warmup_cosine(steps)
    optimizer = torch.optim.AdamW(decay_groups(model, 0.1), lr=learning_rate, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(first_step + step))
    use_cache = getattr(getattr(model, "config", None), "use_cache", None)
    trainer = InOrder(
        model=model,
        args=settings,
        train_dataset=train,
        data_collator=collate,
        optimizers=(optimizer, schedule),
        callbacks=[Finite(first_step), *callbacks],
    )
    trainer.first_step, trainer.use_cache = first_step, use_cache
    trainer.remove_callback(PrinterCallback)  # it prints dictionaries
    return trainer


def warmup_cosine(steps: int) -> Callable[[int], float]:
    """Returns the factor on the learning rate: up over a twentieth of the steps, then a cosine to 0.05."""
    warm = max(1, steps // 20)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        done = (step - warm) / max(1, steps - warm)
        return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return factor


def decay_groups(model: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Returns AdamW's groups: matrices decay; vectors, and what asks for it, do not."""
    with_decay: list[nn.Parameter] = []
    without: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            spared = parameter.dim() < 2 or getattr(parameter, "_no_weight_decay", False)
            (without if spared else with_decay).append(parameter)
    return [
        {"params": with_decay, "weight_decay": decay},
        {"params": without, "weight_decay": 0.0},
    ]


class Stopwatch(TrainerCallback):
    """Adds up the seconds of training steps alone, and calls back at chosen steps.

    ``spent`` are the seconds of an earlier run.
    """

    def __init__(
        self, steps: int, times: int, evaluate: Callable[[int, float], None], spent: float = 0.0
    ) -> None:
        self.seconds = spent
        self._at = {round(steps * (i + 1) / times) for i in range(times)}
        self._evaluate = evaluate
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the watch."""
        _finish(args.device)
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops it, and evaluates when it is time to."""
        _finish(args.device)
        self.seconds += time.perf_counter() - self._began
        if state.global_step in self._at:
            model = kwargs["model"]
            model.eval()
            self._evaluate(state.global_step, self.seconds)
            model.train()


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
