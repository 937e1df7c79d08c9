"""Sizes by name, and models of equal size whatever fills their slots."""

from __future__ import annotations

import functools
from typing import Any

import torch

from nonet.model.config import NonetConfig, round_up
from nonet.model.modeling import NonetForCausalLM
from nonet.shapes import check_choice

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "small": {"hidden_size": 256, "num_hidden_layers": 6, "num_attention_heads": 4},
    "base": {"hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8},
}

# Of a model with dense weights; parts may ask for a multiple of it.
LEARNING_RATES = {"tiny": 3e-3, "small": 1.5e-3, "base": 6e-4}


def preset(size: str, **overrides: Any) -> NonetConfig:
    """Returns the configuration of a named size, with any field replaced.

    A pattern that the size's layers do not repeat whole gets the next number of layers that does.

    Args:
        size: ``"tiny"`` (about 0.4 million parameters), ``"small"`` (5) or ``"base"`` (40).
        **overrides: fields of :class:`NonetConfig`.

    Raises:
        ValueError: the size is not known, or an override is wrong.
    """
    check_choice("size", size, SIZES)
    letters = max(1, len(overrides.get("pattern", "F")))
    layers = round_up(SIZES[size]["num_hidden_layers"], letters)
    return NonetConfig(**{**SIZES[size], "num_hidden_layers": layers, **overrides})


def count_parameters(config: NonetConfig) -> int:
    """Returns the parameters of a language model of this configuration, without making one."""
    return _count(config.to_json_string(use_diff=False))


@functools.lru_cache(maxsize=256)
def _count(text: str) -> int:
    import json

    with torch.device("meta"):
        return NonetForCausalLM(NonetConfig(**json.loads(text))).num_parameters()


def matched(config: NonetConfig, parameters: int) -> NonetConfig:
    """Returns the configuration with the channel mixer's width that brings it nearest to ``parameters``.

    Widths are multiples of 8. The count is linear in the width, so two counts give the answer.

    Raises:
        ValueError: the slots alone take more than ``parameters``.
    """

    def at(width: int) -> NonetConfig:
        return NonetConfig(**{**config.to_dict(), "intermediate_size": width})

    low, high = count_parameters(at(8)), count_parameters(at(16))
    width = 8 + 8 * round((parameters - low) / (high - low))
    if width < 8:
        raise ValueError(f"pattern={config.pattern!r} needs {low} parameters; {parameters} are too few")
    return at(width)
