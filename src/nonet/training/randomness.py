"""The states of all generators of random numbers as tensors, to be kept in a checkpoint."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def random_states() -> dict[str, Tensor]:
    """Returns the states of the generators of Python, NumPy and torch, on every device."""
    _, words, spare = random.getstate()
    legacy: Any = np.random.get_state(legacy=True)
    _, keys, *rest = legacy
    return {
        "python": torch.tensor(words),
        "python.gauss": torch.tensor([] if spare is None else [spare], dtype=torch.float64),
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy.rest": torch.tensor([float(value) for value in rest], dtype=torch.float64),
        "torch": torch.get_rng_state(),
        **{f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())},
    }


def set_random_states(states: dict[str, Tensor]) -> None:
    """Puts all generators back to where they were when :func:`random_states` was called."""
    gauss = states["python.gauss"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), gauss[0] if gauss else None))
    place, has_gauss, spare = states["numpy.rest"].tolist()
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(place), int(has_gauss), spare))
    torch.set_rng_state(states["torch"])
    for i in range(torch.cuda.device_count()):
        if f"cuda.{i}" in states:
            torch.cuda.set_rng_state(states[f"cuda.{i}"], i)
