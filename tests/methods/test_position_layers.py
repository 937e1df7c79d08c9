import copy
import dataclasses
import itertools
import pickle

import pytest
import torch
from common import assert_same, normal

from nonet.flash import FlashConfig, FlashMixer
from nonet.position import (
    AlibiConfig,
    AlibiPosition,
    DynamicNTK,
    LearnedPosition,
    LongRoPE,
    NoPosition,
    RotaryConfig,
    RotaryPosition,
    SinusoidalPosition,
    YaRN,
    alibi_slopes,
    apply_rotary,
    rotary_angles,
    rotary_frequencies,
    sinusoidal,
)
from nonet.slots import Context, Dims

DIMS = Dims(hidden=32, heads=4, kv_heads=2, head_dim=8, layers=2, max_length=16)


PARTS = (
    (RotaryPosition, RotaryConfig(scaling=YaRN(2.0, 16))),
    (AlibiPosition, AlibiConfig(interpolate=True)),
    (SinusoidalPosition, None),
    (LearnedPosition, None),
    (NoPosition, None),
)


def answers(position, length=10):
    """Everything that a position tells a model, as a list of tensors and Nones."""
    places = torch.arange(length)[None]
    turn = position.rotation(length)
    turned = None if turn is None else turn(normal(1, 2, length, 8), places)
    return [position.embed(places), position.slopes(length), turned]


@pytest.mark.parametrize(("part", "options"), PARTS, ids=lambda p: getattr(p, "__name__", ""))
def test_each_position_answers_in_one_way_at_most(part, options):
    given = [answer for answer in answers(part(DIMS, options)) if answer is not None]
    assert len(given) == (part is not NoPosition)


@pytest.mark.parametrize(("part", "options"), PARTS, ids=lambda p: getattr(p, "__name__", ""))
def test_copies_by_every_road_answer_the_same(part, options):
    position = part(DIMS, options)
    want = answers(position)
    with torch.device("meta"):
        loaded = part(DIMS, options)
    loaded.load_state_dict(position.state_dict(), assign=True)
    for other in (copy.deepcopy(position), pickle.loads(pickle.dumps(position)), loaded):
        for one, two in zip(answers(other), want, strict=True):
            assert (one is None and two is None) or torch.equal(one, two)


@pytest.mark.parametrize(("part", "options"), PARTS, ids=lambda p: getattr(p, "__name__", ""))
def test_nothing_is_kept_that_a_checkpoint_would_not_hold(part, options):
    position = part(DIMS, options)
    assert {n for n, _ in position.named_buffers()} == set()
    with torch.inference_mode():  # what it makes there must not reach a later training step
        answers(position)
    x = normal(1, 2, 10, 8).requires_grad_()
    turn = position.rotation(10)
    if turn is not None:
        turn(x, torch.arange(10)[None]).sum().backward()
        assert x.grad is not None
    slopes = position.slopes(10)
    assert slopes is None or not slopes.is_inference()


def test_angles_are_computed_once_for_all_layers():
    turn = RotaryPosition(DIMS, RotaryConfig()).rotation(10)
    x, places = normal(1, 2, 10, 8), torch.arange(10)[None]
    angles = turn._angles(x, places)
    turn(x, torch.arange(5, 15)[None])  # the places of a layer's keys
    turn(x, torch.arange(6, 16)[None])  # those of the next layer's
    assert turn._angles(x, places) is angles
    assert turn._angles(x.double(), places) is not angles
    assert len(turn._kept) == 2
    # Places of the same values are another tensor, and other places never get these angles.
    inv_freq, _ = rotary_frequencies(8, RotaryConfig())
    assert torch.equal(turn(x, places + 1), apply_rotary(x, *rotary_angles(inv_freq, places + 1)))


def test_a_rotation_is_that_of_its_length():
    options = RotaryConfig(scaling=DynamicNTK(2.0, 4), partial=0.5, interleaved=True)
    x, places = normal(1, 2, 10, 8), torch.arange(10)[None]
    angles = rotary_angles(rotary_frequencies(8, options, length=10)[0], places)
    turned = RotaryPosition(DIMS, options).rotation(10)(x, places)
    assert torch.equal(turned, apply_rotary(x, *angles, interleaved=True))
    assert not torch.equal(turned, RotaryPosition(DIMS, options).rotation(4)(x, places))


class Cache:
    """What a mixer needs of a layer's cache."""

    def __init__(self):
        self.kept = None

    def update(self, k, v):
        if self.kept is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(self.kept, (k, v), strict=True))
        self.kept = (k, v)
        return k, v


def attend(position, x, cuts=(), pads=(0, 0)):
    """Runs one layer of attention over ``x`` in parts; returns what each new token got."""
    torch.manual_seed(0)
    mixer = FlashMixer(DIMS, FlashConfig(), 0, torch.nn.Linear).double()
    cache, outs, edges = Cache(), [], [0, *cuts, x.shape[1]]
    starts = torch.tensor(pads)
    for past, end in itertools.pairwise(edges):
        places = (torch.arange(past, end) - starts[:, None]).clamp(min=0)
        context = Context(places, past, starts, rotation=position.rotation(end), slopes=position.slopes(end))
        outs.append(mixer(x[:, past:end], context, cache))
    return torch.cat(outs, dim=1).detach()


STEADY = (
    RotaryPosition(DIMS, RotaryConfig()),
    RotaryPosition(DIMS, RotaryConfig(scaling=YaRN(4.0, 8), partial=0.5, interleaved=True)),
    AlibiPosition(DIMS, AlibiConfig()),
)
CHANGING = (  # with the length of the context
    RotaryPosition(DIMS, RotaryConfig(scaling=DynamicNTK(2.0, 4))),
    RotaryPosition(DIMS, RotaryConfig(scaling=LongRoPE(2.0, 4, (1.0,) * 4, (1.0, 2.0, 3.0, 4.0)))),
    AlibiPosition(dataclasses.replace(DIMS, max_length=4), AlibiConfig(interpolate=True)),
)


@pytest.mark.parametrize("position", STEADY + CHANGING, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("cut", [1, 5, 10])
def test_continuing_from_a_cache_equals_one_call(position, cut):
    x = normal(2, 11, 32, dtype=torch.float64)
    whole, parts = attend(position, x), attend(position, x, cuts=(cut,))
    if position in CHANGING:  # tokens before the cut were read in a shorter context
        whole, parts = whole[:, cut:], parts[:, cut:]
    assert_same(parts, whole)


@pytest.mark.parametrize("position", STEADY, ids=lambda p: type(p).__name__)
def test_padding_on_the_left_changes_nothing(position):
    x = normal(2, 9, 32, dtype=torch.float64)
    alone = attend(position, x[1:, 4:], pads=(0,))
    padded = attend(position, x, pads=(0, 4))[1:, 4:]
    assert_same(padded, alone)


def test_alibi_is_interpolated_only_when_asked():
    plain, bent = (AlibiPosition(DIMS, AlibiConfig(interpolate=flag)) for flag in (False, True))
    assert torch.equal(plain.slopes(64), alibi_slopes(4))
    assert torch.equal(bent.slopes(16), alibi_slopes(4))
    assert torch.equal(bent.slopes(64), alibi_slopes(4) / 4)


def test_sinusoids_start_at_the_size_of_tokens_and_keep_the_dtype_of_the_model():
    position = SinusoidalPosition(DIMS)
    position.init_weights(0.5)
    places = torch.arange(100)[None]
    assert torch.equal(position.embed(places), 0.5 * sinusoidal(places, 32))
    low = position.bfloat16().embed(places)
    assert torch.equal(low, (0.5 * sinusoidal(places, 32)).bfloat16())
    assert position.double().embed(places).dtype == torch.float64
    position.embed(places).sum().backward()
    assert position.gain.grad is not None


def test_a_place_behind_the_table_is_named():
    position = LearnedPosition(DIMS)
    assert torch.equal(position.embed(torch.tensor([[3, 15]]))[0], position.table.weight[[3, 15]])
    with pytest.raises(
        ValueError, match="a context of 17 tokens does not fit the table of 16 learned positions"
    ):
        position.embed(torch.arange(17)[None])
