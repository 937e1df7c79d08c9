"""What an unfinished training has learned, and its optimiser's moments: safetensors, never a pickle."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, TrainerCallback

NAME = "checkpoint"


def save_checkpoint(
    directory: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, about: dict[str, Any]
) -> None:
    """Writes ``directory/checkpoint`` under another name first, then puts it in place of the last one."""
    fresh, place, old = (directory / f"{NAME}{end}" for end in (".new", "", ".old"))
    for leftover in (fresh, old):
        shutil.rmtree(leftover, ignore_errors=True)
    fresh.mkdir(parents=True)
    trained = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
    save_file(trained, str(fresh / "model.safetensors"))
    state = optimizer.state_dict()["state"]
    moments = {
        f"{index}.{name}": torch.as_tensor(value).contiguous()
        for index, entry in state.items()
        for name, value in entry.items()
    }
    save_file(moments, str(fresh / "optimizer.safetensors"))
    (fresh / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    if place.exists():
        place.rename(old)
    fresh.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def read_about(directory: Path) -> dict[str, Any] | None:
    """Returns what the checkpoint says of itself, or None when there is none."""
    place = _place(directory)
    if place is None:
        return None
    about: dict[str, Any] = json.loads((place / "about.json").read_text())
    return about


def load_checkpoint(directory: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
    """Gives the model and the optimiser back what the checkpoint holds."""
    place = _place(directory)
    assert place is not None
    kept = load_file(str(place / "model.safetensors"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(kept.pop(name))
    assert not kept, f"the checkpoint holds parameters that are not trained: {', '.join(kept)}"
    entries: dict[int, dict[str, Any]] = {}
    with safe_open(str(place / "optimizer.safetensors"), framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  (not a mapping)
            index, name = key.split(".", 1)
            entries.setdefault(int(index), {})[name] = file.get_tensor(key)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})


def remove_checkpoint(directory: Path) -> None:
    """Removes the checkpoint of a training that is finished."""
    for end in ("", ".new", ".old"):
        shutil.rmtree(directory / f"{NAME}{end}", ignore_errors=True)


def _place(directory: Path) -> Path | None:
    """The newest whole checkpoint: a run killed between the two renames has only the old one."""
    for end in ("", ".old"):
        if (directory / f"{NAME}{end}" / "about.json").exists():
            return directory / f"{NAME}{end}"
    return None


class Keeper(TrainerCallback):
    """Saves a checkpoint every so many seconds, and when the training is asked to stop."""

    def __init__(self, directory: Path, about: dict[str, Any], first_step: int, every: float) -> None:
        self.directory, self.about, self.first_step, self.every = directory, about, first_step, every
        self.last = time.monotonic()
        self.stop = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves when it is time."""
        if not state.is_world_process_zero:
            return
        if self.stop or time.monotonic() - self.last >= self.every:
            about = {**self.about, "step": self.first_step + state.global_step}
            save_checkpoint(self.directory, kwargs["model"], _plain(kwargs["optimizer"]), about)
            self.last = time.monotonic()
        control.should_training_stop = control.should_training_stop or self.stop


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)
