"""What an unfinished training has learned, its optimiser's moments and random states: never a pickle."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from nonet.files import read_json, read_tensors, to_json
from nonet.training.diverged import DivergedError
from nonet.training.randomness import random_states, set_random_states

NAME = "checkpoint"
MODEL, OPTIMIZER, RANDOM, ABOUT = (
    "model.safetensors",
    "optimizer.safetensors",
    "random.safetensors",
    "about.json",
)


def save_checkpoint(
    directory: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, about: dict[str, Any]
) -> None:
    """Writes ``directory/checkpoint`` under another name first, then puts it in place of the last one.

    Raises:
        DivergedError: a weight is not finite; the last checkpoint stays.
    """
    trained = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    if not all(bool(tensor.isfinite().all()) for tensor in trained.values()):
        raise DivergedError(f"a weight is not finite after step {about['step']}")
    fresh, place, old = (directory / f"{NAME}{end}" for end in (".new", "", ".old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file(trained, str(fresh / MODEL))
    state = optimizer.state_dict()["state"]
    moments = {
        f"{index}.{name}": torch.as_tensor(value).contiguous()
        for index, entry in state.items()
        for name, value in entry.items()
    }
    save_file(moments, str(fresh / OPTIMIZER))
    save_file(random_states(), str(fresh / RANDOM))
    (fresh / ABOUT).write_text(to_json(about), encoding="utf-8")
    if place.exists():
        place.rename(old)
    fresh.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def read_about(directory: Path) -> dict[str, Any] | None:
    """Returns what the checkpoint says of itself, or None when there is none.

    Raises:
        ValueError: it cannot be read; the message names the file.
    """
    place = _place(directory)
    if place is None:
        return None
    return read_json(place / ABOUT)


def load_checkpoint(
    directory: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """Gives the model and the optimiser back what the checkpoint holds, and returns the random states.

    Raises:
        ValueError: it cannot be read, or holds other parameters than those that are trained.
    """
    place = _place(directory)
    assert place is not None
    kept, moments, states = (read_tensors(place / name) for name in (MODEL, OPTIMIZER, RANDOM))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if kept.keys() != trained.keys():
        other = sorted(kept.keys() ^ trained.keys())
        raise ValueError(
            f"{place / MODEL} holds other parameters than are trained ({other[0]}, for one); "
            "begin again with another --out"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(kept[name])
    entries: dict[int, dict[str, Any]] = {}
    for key, value in moments.items():
        index, name = key.split(".", 1)
        entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    return states


def remove_checkpoint(directory: Path) -> None:
    """Removes the checkpoint of a training that is finished."""
    for end in ("", ".new", ".old"):
        shutil.rmtree(directory / f"{NAME}{end}", ignore_errors=True)


def _place(directory: Path) -> Path | None:
    """The newest whole checkpoint: a run killed between the two renames has only the old one."""
    for end in ("", ".old"):
        if (directory / f"{NAME}{end}" / ABOUT).exists():
            return directory / f"{NAME}{end}"
    return None


class Keeper(TrainerCallback):
    """Saves a checkpoint every so many seconds, and when the training is asked to stop.

    Args:
        directory: where the checkpoint lies.
        about: what it says of itself, beside the step.
        first_step: steps that an earlier run has done.
        every: seconds between checkpoints.
    """

    def __init__(self, directory: Path, about: dict[str, Any], first_step: int, every: float) -> None:
        self.directory, self.about, self.first_step, self.every = directory, about, first_step, every
        self.last = time.monotonic()
        self.stop = False
        self.random: dict[str, Tensor] | None = None  # of the checkpoint that is continued

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Goes on with the random numbers of the earlier run, once the data are at hand."""
        if self.random is not None:
            set_random_states(self.random)
            self.random = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves when it is time."""
        if self.stop or time.monotonic() - self.last >= self.every:
            about = {**self.about, "step": self.first_step + state.global_step}
            save_checkpoint(self.directory, kwargs["model"], _plain(kwargs["optimizer"]), about)
            self.last = time.monotonic()
        control.should_training_stop = control.should_training_stop or self.stop


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)
