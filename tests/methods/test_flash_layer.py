import itertools

import numpy as np
import pytest
import torch
from common import assert_same, normal
from torch import nn
from transformers.cache_utils import DynamicLayer

from nonet.flash import (
    FlashConfig,
    FlashMixer,
)
from nonet.position import AlibiConfig, AlibiPosition, DynamicNTK, RotaryConfig, RotaryPosition
from nonet.slots import Context, Dims

DIMS = Dims(hidden=32, heads=4, kv_heads=2, head_dim=8, layers=2, max_length=32)
POSITIONS = {
    "none": None,
    "rope": RotaryPosition(DIMS, RotaryConfig()),
    "rope of the whole": RotaryPosition(DIMS, RotaryConfig(scaling=DynamicNTK(2.0, 8))),
    "alibi": AlibiPosition(DIMS, AlibiConfig()),
}


def context_of(position, past, new, starts=None, ends=None):
    place = POSITIONS[position]
    places = torch.arange(past, past + new)[None]
    return Context(
        places=places if starts is None else (places - starts[:, None]).clamp(min=0),
        past=past,
        starts=starts,
        ends=ends,
        rotation=place.rotation(past + new) if place else None,
        slopes=place.slopes(past + new) if place else None,
    )


def mixer(dims=DIMS, **options):
    return FlashMixer(dims, FlashConfig(**options), 0, nn.Linear).double()


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"softcap": 1.0}], ids=str)
def test_the_layer_does_not_see_the_future(options):
    layer = mixer(**options)
    x, context = normal(1, 9, 32).double(), context_of("rope", 0, 9)
    before = layer(x, context)
    for changed in range(9):
        other = x.clone()
        other[:, changed] = 100.0
        after = layer(other, context)
        assert torch.equal(after[:, :changed], before[:, :changed])
        assert not torch.equal(after[:, changed:], before[:, changed:])


def test_grouped_heads_are_copies_of_key_heads():
    layer = mixer()
    copied = mixer(Dims(**{**DIMS.__dict__, "kv_heads": 4}))
    weights = layer.state_dict()
    for name in ("k_proj.weight", "v_proj.weight"):
        weights[name] = weights[name].view(2, 8, 32).repeat_interleave(2, 0).flatten(0, 1)
    copied.load_state_dict(weights)
    x, context = normal(2, 9, 32).double(), context_of("rope", 0, 9)
    assert_same(copied(x, context), layer(x, context))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("chunks", [[1] * 9, [4, 1, 4], [2, 7]], ids=str)
def test_chunks_make_the_whole(position, chunks):
    layer = mixer(window=5)
    starts, x = torch.tensor([0, 3]), normal(2, 9, 32).double()
    with torch.no_grad():
        whole = layer(x, context_of(position, 0, 9, starts))
        state = DynamicLayer()
        for past, to in itertools.pairwise(np.cumsum([0, *chunks]).tolist()):
            out = layer(x[:, past:to], context_of(position, past, to - past, starts), state)
    for b in range(2):  # row 1 has padding in front
        new = slice(max(9 - chunks[-1], starts[b]), None)
        assert_same(out[b, -chunks[-1] :][-(9 - new.start) :], whole[b, new], f"row {b}")


@pytest.mark.parametrize("causal", [True, False], ids=["language model", "encoder"])
@pytest.mark.parametrize("position", ["none", "rope", "alibi"])
@pytest.mark.parametrize("window", [None, 3])
def test_padding_changes_nothing(causal, position, window):
    layer = mixer(Dims(**{**DIMS.__dict__, "causal": causal}), window=window)
    x, starts, ends = normal(3, 9, 32).double(), torch.tensor([3, 0, 1]), torch.tensor([9, 6, 7])
    padded = layer(x, context_of(position, 0, 9, starts, ends))
    for b, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        alone = layer(x[b : b + 1, start:end], context_of(position, 0, end - start))
        assert_same(padded[b : b + 1, start:end], alone, f"row {b}")


# Choosing an implementation, and what is refused.
