"""A small model to begin with: chosen layers of a large one."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from transformers.modeling_utils import PreTrainedModel

from nonet.tandem.reading import decoder_layers


def secondary_from(primary: PreTrainedModel, layers: int | Sequence[int]) -> PreTrainedModel:
    """Returns a new model of copies of some layers of another, with its embedding, final norm and head.

    Args:
        primary: a causal model whose layers are all of one kind.
        layers: how many of the lowest layers to take, or the indices of those to take, in rising order.

    Raises:
        ValueError: ``layers`` is empty, falls, or names a layer that is not there; or the model's layers
            are of several kinds.

    Cost: the memory of the new model; what was tied stays tied.
    """
    own = decoder_layers(primary)
    kept = list(range(layers)) if isinstance(layers, int) else list(layers)
    if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= len(own):
        raise ValueError(f"layers must be some of 0 to {len(own) - 1} in rising order; got {layers!r}")
    kinds = getattr(primary.config, "layer_types", None)
    if kinds is not None and len(set(kinds)) > 1:
        raise ValueError(
            f"{type(primary).__name__} has layers of several kinds ({', '.join(sorted(set(kinds)))}), "
            "of which no smaller model can be made"
        )
    config = copy.deepcopy(primary.config)
    config.num_hidden_layers = len(kept)
    if "layer_types" in vars(config) and kinds is not None:
        config.layer_types = kinds[: len(kept)]
    with torch.random.fork_rng(devices=[]):  # its first values are not used
        secondary = type(primary)(config).to(device=primary.device, dtype=primary.dtype)
    prefix = next(name for name, module in primary.named_modules() if module is own) + "."
    around = {name: t for name, t in primary.state_dict().items() if not name.startswith(prefix)}
    secondary.load_state_dict(around, strict=False)
    for new, index in zip(decoder_layers(secondary), kept, strict=True):
        new.load_state_dict(own[index].state_dict())
    secondary.tie_weights()
    return secondary.eval()
