"""The checkpoint of an unfinished training: weights, optimiser moments and random states, in safetensors."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, TrainerCallback

from nonet.files import to_json
from nonet.training.diverged import DivergedError
from nonet.training.randomness import random_states, set_random_states
from nonet.writing import check_writable, write_whole

NAME = "checkpoint.safetensors"
_MODEL, _OPTIMIZER, _RANDOM = "model.", "optimizer.", "random."  # what the names of tensors begin with


def save_checkpoint(
    directory: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, about: dict[str, Any]
) -> None:
    """Writes ``directory/checkpoint.safetensors``: a single file, which replaces the last one in one step.

    Raises:
        DivergedError: a weight is not finite; the last checkpoint stays.
        OSError: the file cannot be written; the last checkpoint stays.
    """
    trained = {n: p.detach().contiguous() for n, p in _trained(model).items()}
    if not all(bool(tensor.isfinite().all()) for tensor in trained.values()):
        raise DivergedError(f"a weight is not finite after step {about['step']}")
    tensors = {_MODEL + name: tensor for name, tensor in trained.items()}
    for index, entry in optimizer.state_dict()["state"].items():
        for name, value in entry.items():
            tensors[f"{_OPTIMIZER}{index}.{name}"] = torch.as_tensor(value).contiguous()
    tensors |= {_RANDOM + name: tensor for name, tensor in random_states().items()}
    size, result = (sum(t.nbytes for t in them.values()) for them in (tensors, trained))
    # After a first checkpoint the result must still fit; later ones take no more room.
    check_writable(directory, size if (directory / NAME).exists() else size + result)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / NAME, lambda path: save_file(tensors, path, {"about": to_json(about)}))


def read_about(directory: Path) -> dict[str, Any] | None:
    """Returns what the checkpoint records about its run, or None if there is none.

    Raises:
        ValueError: it cannot be read; the message names the file.
    """
    if not (directory / NAME).exists():
        return None
    with _opened(directory) as file:
        try:
            about = json.loads((file.metadata() or {}).get("about", ""))
        except (ValueError, RecursionError):
            about = None
        if not isinstance(about, dict) or not {"recipe", "rests_on", "step", "seconds"} <= about.keys():
            raise ValueError(
                f"{directory / NAME} is not a checkpoint of nonet; begin again with another --out"
            )
        return about


def load_checkpoint(
    directory: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer | None
) -> dict[str, Tensor]:
    """Restores the model and the optimiser from a checkpoint, and returns the random states.

    Args:
        directory: the directory that holds the checkpoint.
        model: gets the trained weights.
        optimizer: gets its moments; None if there is nothing left to train.

    Raises:
        ValueError: it cannot be read, or holds other parameters than those that are trained.
    """
    with _opened(directory) as file:
        names = file.keys()
        kept = {name: file.get_tensor(name) for name in names if optimizer or not name.startswith(_OPTIMIZER)}
    weights, trained = _part(kept, _MODEL), _trained(model)
    other = weights.keys() ^ trained.keys()
    other |= {n for n in weights.keys() & trained.keys() if weights[n].shape != trained[n].shape}
    if other:
        raise ValueError(
            f"{directory / NAME} does not hold the parameters that are trained ({min(other)}, for one); "
            "begin again with another --out"
        )
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(weights[name])
    if optimizer is not None:
        entries: dict[int, dict[str, Any]] = {}
        for key, value in _part(kept, _OPTIMIZER).items():
            index, name = key.split(".", 1)
            entries.setdefault(int(index), {})[name] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})
    return _part(kept, _RANDOM)


def remove_checkpoint(directory: Path) -> None:
    """Removes the checkpoint of a finished training."""
    (directory / NAME).unlink(missing_ok=True)


def _trained(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


@contextmanager
def _opened(directory: Path) -> Iterator[Any]:
    """The open file; raises ValueError, naming it, where it is damaged."""
    path = directory / NAME
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path} is cut short or damaged ({error}); begin again with another --out"
        ) from error


class Keeper(TrainerCallback):
    """Saves a checkpoint every ``every`` seconds, after the last step, and when training is asked to stop.

    A checkpoint that cannot be written does not end the training: a message says so once.

    Args:
        directory: the directory of the checkpoint.
        about: what the checkpoint records about its run, besides the step and the seconds.
        first_step: steps that an earlier run has done.
        steps: steps of the whole training.
        every: seconds between checkpoints.
        seconds: returns how long the steps have taken so far.
        say: prints a message for people.
    """

    def __init__(
        self,
        directory: Path,
        about: dict[str, Any],
        first_step: int,
        steps: int,
        every: float,
        seconds: Callable[[], float],
        say: Callable[[str], None],
    ) -> None:
        self.directory, self.about, self.first_step, self.steps = directory, about, first_step, steps
        self.every, self.seconds, self.say = every, seconds, say
        self.last = time.monotonic()
        self.stop = False
        self.failed: OSError | None = None  # why the last checkpoint was not written
        self.random: dict[str, Tensor] | None = None  # of the checkpoint that is continued

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restores the random states of the earlier run, after the data loader has drawn from them."""
        if self.random is not None:
            set_random_states(self.random)
            self.random = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves when it is time."""
        step = self.first_step + state.global_step
        if self.stop or step == self.steps or time.monotonic() - self.last >= self.every:
            self._save(step, kwargs["model"], _plain(kwargs["optimizer"]))
        control.should_training_stop = control.should_training_stop or self.stop

    def _save(self, step: int, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> None:
        about = {**self.about, "step": step, "seconds": self.seconds()}
        try:
            save_checkpoint(self.directory, model, optimizer, about)
            self.failed = None
        except OSError as error:
            if self.failed is None:
                self.say(f"No checkpoint of step {step}: {error}. The run goes on.")
            self.failed = error
        self.last = time.monotonic()


def _plain(optimizer: Any) -> torch.optim.Optimizer:
    """The optimiser inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)
