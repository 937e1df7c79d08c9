import copy
import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from common import assert_same, normal
from transformers import FalconConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.bloom import modeling_bloom
from transformers.models.distilbert.modeling_distilbert import create_sinusoidal_embeddings
from transformers.models.falcon import modeling_falcon
from transformers.models.gpt_neox import modeling_gpt_neox
from transformers.models.gptj import modeling_gptj
from transformers.models.llama import modeling_llama
from transformers.models.mpt.modeling_mpt import build_mpt_alibi_tensor

from nonet.position import (
    DynamicNTK,
    Linear,
    Llama3,
    LongRoPE,
    RotaryConfig,
    RotaryPosition,
    SinusoidalPosition,
    YaRN,
    alibi_bias,
    alibi_slopes,
    apply_rotary,
    rotary_angles,
    rotary_frequencies,
    sinusoidal,
)
from nonet.slots import Dims
from nonet.testing import assert_within_budget, assert_within_rounding

DIMS = Dims(hidden=32, heads=4, kv_heads=2, head_dim=8, layers=2, max_length=16)
LISTS = {"short_factor": tuple(1 + j / 10 for j in range(8)), "long_factor": tuple(2.0 + j for j in range(8))}
SCALINGS = (
    (Linear(4.0), {}),
    (DynamicNTK(2.0, 64), {}),
    (YaRN(4.0, 64), {}),
    (YaRN(16.0, 4096, truncate=False, beta_fast=20.0, beta_slow=2.0), {}),
    (YaRN(4.0, 64, attention_factor=1.25), {}),
    (YaRN(1.0, 8), {}),
    (LongRoPE(4.0, 64, **LISTS), {}),
    (LongRoPE(1.0, 64, **LISTS, attention_factor=1.5), {}),
    (Llama3(), {"base": 500000.0}),
    (Llama3(8.0, 64), {"partial": 0.5}),
)


def angles_of(places, width=16, dtype=torch.float32, **options):
    inv_freq, factor = rotary_frequencies(width, RotaryConfig(**options), dtype=dtype)
    return rotary_angles(inv_freq, places, factor)


def llama(head_dim=16, **parameters):
    length = parameters.get("original_max_position_embeddings", 64)
    return LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        max_position_embeddings=length,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, **parameters},
    )


# ALiBi: slopes


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (16, [h / 2 for h in range(1, 17)]),
        (12, [1, 2, 3, 4, 5, 6, 7, 8, 0.5, 1.5, 2.5, 3.5]),
        (6, [2, 4, 6, 8, 1, 3]),
        (1, [8]),
    ],
)
def test_slopes_are_those_that_the_paper_prints(heads, exponents):
    slopes = alibi_slopes(heads)
    assert slopes.dtype == torch.float32
    assert torch.equal(slopes, torch.tensor([2.0**-e for e in exponents]))


def bloom_slopes(heads):
    return modeling_bloom.build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1]


def mpt_slopes(heads):
    return -build_mpt_alibi_tensor(heads, 2)[:, 0, 0]


@pytest.mark.parametrize("other", [bloom_slopes, mpt_slopes])
@pytest.mark.parametrize("heads", [*range(1, 34), 71, 112])
def test_bloom_and_mpt_have_the_same_slopes(heads, other):
    step = 4 / 2 ** (heads.bit_length() - 1)  # every exponent is a multiple of it
    steps = [-torch.log2(slopes).double() / step for slopes in (alibi_slopes(heads), other(heads))]
    assert torch.equal(steps[0].round(), steps[1].round())


def test_falcon_rounds_the_same_slopes_to_bfloat16():
    theirs = modeling_falcon.build_alibi_tensor(torch.ones(1, 2), 12, torch.float32)[:, 0, 1]
    assert torch.equal(theirs, alibi_slopes(12).bfloat16().float())


def test_slopes_are_interpolated_beyond_the_training_length_only():
    slopes = alibi_slopes(6)
    for length in (1, 128):
        assert torch.equal(alibi_slopes(6, length=length, train_length=128), slopes)
    longer = alibi_slopes(6, length=512, train_length=128)
    assert torch.equal(longer, slopes / 4)
    # The farthest token is penalised as the farthest of training would be.
    assert torch.equal(longer * 512, slopes * 128)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_heads": 0}, "n_heads must be a whole number above zero"),
        ({"n_heads": 4, "length": 8}, "length and train_length must be given together"),
        ({"n_heads": 4, "length": 8, "train_length": 0}, "train_length must be a whole number above zero"),
    ],
)
def test_bad_slopes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        alibi_slopes(**arguments)


# ALiBi: bias


def test_bias_is_aligned_at_the_bottom_right():
    bias = alibi_bias(torch.tensor([1.0, 0.5]), queries=2, keys=3)
    assert torch.equal(bias[0], -torch.tensor([[1.0, 0.0, 1.0], [2.0, 1.0, 0.0]]))
    assert torch.equal(bias[1], bias[0] / 2)


def test_bias_of_the_last_query_is_mpts():
    assert torch.equal(alibi_bias(alibi_slopes(8), 1, 100), build_mpt_alibi_tensor(8, 100))


def test_blooms_bias_equals_the_symmetric_one_under_a_causal_softmax():
    length, dtype = 50, torch.float64
    scores = normal(8, length, length, dtype=dtype)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    bloom = modeling_bloom.build_alibi_tensor(torch.ones(1, length), 8, dtype)
    symmetric = alibi_bias(alibi_slopes(8).to(dtype), length, length)
    shifted, gold = (
        (scores + bias).masked_fill(future, -torch.inf).softmax(-1) for bias in (bloom, symmetric)
    )
    assert_same(shifted, gold)
    # Without a causal mask the shift differs between rows and the two are not the same.
    assert not torch.allclose((scores + bloom).softmax(-1), (scores + symmetric).softmax(-1))


def test_falcon_divides_its_bias_by_the_root_of_the_width():
    config = FalconConfig(hidden_size=48, num_attention_heads=6, alibi=True, multi_query=False)
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    attention = modeling_falcon.FalconAttention(config, layer_idx=0)
    for weight in attention.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    x = normal(1, 20, 48)
    future = torch.ones(20, 20, dtype=torch.bool).triu(1)
    alibi = modeling_falcon.build_alibi_tensor(torch.ones(1, 20), 6, torch.float32).view(1, 6, 1, 20)
    bias = (alibi / 8**0.5).masked_fill(future, -torch.inf)  # as FalconModel prepares it
    with torch.no_grad():
        theirs = attention(x, alibi, bias)[0]

    @torch.no_grad()
    def ours():
        module = copy.deepcopy(attention).double()
        q, k, v = module._split_heads(module.query_key_value(x.double()))
        slopes = alibi_slopes(6).bfloat16().double() / 8**0.5
        scores = q.transpose(1, 2) @ k.transpose(1, 2).mT / 8**0.5 + alibi_bias(slopes, 20, 20)
        weights = scores.masked_fill(future, -torch.inf).softmax(-1)
        return module.dense((weights @ v.transpose(1, 2)).transpose(1, 2).flatten(-2))

    assert_within_rounding(theirs, ours)


# RoPE: frequencies


def test_plain_frequencies_are_llamas():
    theirs, _ = modeling_llama.LlamaRotaryEmbedding.compute_default_rope_parameters(llama(64))
    ours, factor = rotary_frequencies(64)
    assert torch.equal(ours, theirs)
    assert factor == 1.0


@pytest.mark.parametrize(("scaling", "options"), SCALINGS, ids=lambda v: getattr(v, "kind", ""))
@pytest.mark.parametrize("length", [None, 50, 64, 65, 300, 10000])
def test_scaled_frequencies_are_those_of_transformers_bit_for_bit(scaling, options, length):
    options = RotaryConfig(scaling=scaling, **options)
    head_dim = int(16 / options.partial)
    parameters = dataclasses.asdict(scaling)
    if "original_length" in parameters:
        parameters["original_max_position_embeddings"] = parameters.pop("original_length")
    config = llama(
        head_dim,
        rope_type=parameters.pop("kind"),
        **parameters | {"rope_theta": options.base, "partial_rotary_factor": options.partial},
    )
    theirs, their_factor = ROPE_INIT_FUNCTIONS[scaling.kind](config, device="cpu", seq_len=length)
    ours, factor = rotary_frequencies(head_dim, options, length=length)
    assert torch.equal(ours, theirs)
    assert factor == their_factor


def test_dynamic_ntk_interpolates_the_slowest_dims_by_just_the_ratio():
    """What definition 1 of the YaRN paper solves for the base."""
    gold = rotary_frequencies(16, dtype=torch.float64)[0] / 8
    found, _ = rotary_frequencies(
        16, RotaryConfig(scaling=DynamicNTK(1.0, 100)), length=800, dtype=torch.float64
    )
    assert_same(found[-1], gold[-1])
    assert found[0] == 8 * gold[0] == 1


def test_yarn_and_llama3_leave_fast_dims_and_interpolate_slow_ones():
    plain, _ = rotary_frequencies(128)
    for scaling in (YaRN(4.0, 2048), Llama3(4.0, 2048)):
        scaled, _ = rotary_frequencies(128, RotaryConfig(scaling=scaling))
        assert torch.equal(scaled[:8], plain[:8])
        assert torch.equal(scaled[-8:], plain[-8:] / 4)
        assert bool((scaled.diff() < 0).all())


def test_of_whole_marks_exactly_the_scalings_that_depend_on_the_length():
    for scaling, options in SCALINGS:
        options = RotaryConfig(scaling=scaling, **options)
        width = int(16 / options.partial)
        short, long = (rotary_frequencies(width, options, length=n)[0] for n in (8, 10**6))
        assert scaling.of_whole is not torch.equal(short, long)


@pytest.mark.parametrize(
    "options",
    [RotaryConfig(), *(RotaryConfig(scaling=s, **o) for s, o in SCALINGS)],
    ids=lambda o: str(o)[:60],
)
def test_options_survive_json(options):
    assert RotaryConfig(**json.loads(json.dumps(dataclasses.asdict(options)))) == options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RotaryConfig(base=1.0), "base must be above 1; got 1.0"),
        (lambda: RotaryConfig(partial=0.0), "partial must be above 0 and at most 1; got 0.0"),
        (
            lambda: RotaryConfig(scaling={"kind": "ntk"}),
            "'ntk' is not known; choose from linear, dynamic, yarn",
        ),
        (lambda: Linear(0.5), "factor must be at least 1; got 0.5"),
        (lambda: DynamicNTK(2.0, 0), "original_length must be above zero; got 0"),
        (lambda: YaRN(2.0, 64, beta_fast=1.0), "beta_fast must be above beta_slow"),
        (lambda: YaRN(2.0, 6), "original_length must be above 2 pi beta_slow = 6.3; got 6"),
        (lambda: LongRoPE(2.0, 1, **LISTS), "original_length must be above 1; got 1"),
        (lambda: Llama3(high_freq_factor=1.0), "high_freq_factor must be above low_freq_factor"),
        (lambda: rotary_frequencies(7), "must leave an even number of dims to turn; got 7"),
        (lambda: rotary_frequencies(8, RotaryConfig(partial=0.1)), "got 0, from head_dim=8 and partial=0.1"),
        (
            lambda: rotary_frequencies(2, RotaryConfig(scaling=DynamicNTK(2.0, 8))),
            "at least 4 dims turn for dynamic scaling; got 2",
        ),
        (
            lambda: RotaryPosition(DIMS, RotaryConfig(scaling=LongRoPE(2.0, 64, **LISTS))),
            "short_factor must have 4 numbers, one a pair of dims that turn; got 8",
        ),
    ],
)
def test_bad_options_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# RoPE: rotation


@pytest.mark.parametrize("scaling", [None, YaRN(4.0, 64)], ids=["plain", "yarn"])
def test_halves_turn_as_in_llama(scaling):
    parameters = {} if scaling is None else {"rope_type": "yarn", "factor": 4.0}
    rotary = modeling_llama.LlamaRotaryEmbedding(llama(original_max_position_embeddings=64, **parameters))
    q, k = normal(2, 4, 9, 16), normal(2, 2, 9, 16, seed=1)
    places = torch.arange(9) + torch.tensor([[0], [1000]])
    full_cos, full_sin = rotary(q, places)
    cos, sin = angles_of(places, scaling=scaling)
    assert torch.equal(full_cos, torch.cat([cos, cos], -1))
    theirs = modeling_llama.apply_rotary_pos_emb(q, k, full_cos, full_sin)
    for x, want in zip((q, k), theirs, strict=True):
        assert torch.equal(apply_rotary(x, cos, sin), want)


def test_neighbours_turn_as_in_gptj():
    x, places = normal(2, 4, 9, 16), torch.arange(9)[None]
    cos, sin = angles_of(places)
    theirs = modeling_gptj.apply_rotary_pos_emb(x.transpose(1, 2), sin, cos).transpose(1, 2)
    assert torch.equal(apply_rotary(x, cos, sin, interleaved=True), theirs)


def test_part_of_the_dims_turns_as_in_gpt_neox():
    x, places = normal(2, 4, 9, 16), torch.arange(9)[None]
    cos, sin = angles_of(places, partial=0.25)
    full = (torch.cat([angle, angle], -1) for angle in (cos, sin))
    theirs, _ = modeling_gpt_neox.apply_rotary_pos_emb(x, x, *full)
    ours = apply_rotary(x, cos, sin)
    assert torch.equal(ours, theirs)
    assert torch.equal(ours[..., 4:], x[..., 4:])


def test_the_two_conventions_are_one_up_to_the_order_of_dims():
    x = normal(1, 2, 7, 16)
    cos, sin = angles_of(torch.arange(7)[None])
    order = torch.arange(16).view(8, 2).T.flatten()  # even dims, then odd ones
    neighbours = apply_rotary(x, cos, sin, interleaved=True)
    assert torch.equal(apply_rotary(x[..., order], cos, sin), neighbours[..., order])


@pytest.mark.parametrize("interleaved", [False, True])
def test_scores_know_only_distances(interleaved):
    far = 10000
    q, k = normal(1, 2, 6, 16, dtype=torch.float64), normal(1, 2, 6, 16, seed=1, dtype=torch.float64)

    def scores(shift):
        cos, sin = angles_of(torch.arange(6)[None] + shift, dtype=torch.float64)
        return apply_rotary(q, cos, sin, interleaved) @ apply_rotary(k, cos, sin, interleaved).mT

    near = scores(0)
    assert_same(scores(far), near, "shifted scores")
    assert_same(near.diagonal(dim1=-2, dim2=-1), (q * k).sum(-1), "own scores")


def test_rotation_is_that_of_complex_numbers():
    """Equation 12: neighbours are a complex number, multiplied by exp(i m theta)."""
    x, places = normal(1, 1, 5, 8, dtype=torch.float64), np.array([0, 1, 2, 7, 300])
    cos, sin = angles_of(torch.from_numpy(places)[None], width=8, dtype=torch.float64)
    found = apply_rotary(x, cos, sin, interleaved=True)
    want = np.empty((5, 8))
    for row, m in enumerate(places):
        for j in range(4):
            a, b = x[0, 0, row, 2 * j : 2 * j + 2].tolist()
            turned = complex(a, b) * np.exp(1j * m * 10000.0 ** (-2 * j / 8))
            want[row, 2 * j : 2 * j + 2] = turned.real, turned.imag
    assert_same(found, torch.from_numpy(want)[None, None])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_far_places_stay_apart_in_low_precision(dtype):
    x = normal(1, 1, 1, 8).expand(1, 1, 4, 8).to(dtype)
    places = torch.tensor([[256, 257, 4096, 4097]])
    turned = RotaryPosition(DIMS, RotaryConfig()).rotation(5000)(x, places)
    exact = apply_rotary(x.float(), *angles_of(places, width=8))
    assert turned.dtype == dtype
    assert torch.equal(turned, exact.to(dtype))
    assert len(turned[0, 0].unique(dim=0)) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 5, 8)}, r"x must have the shape \(B, H, T, D\)"),
        ({"x": torch.zeros(2, 3, 5, 8, dtype=torch.long)}, "x must be of float64, float32"),
        ({"cos": torch.zeros(2, 4, 4)}, r"cos must have the shape \(Bc, T=5, half\); got \(2, 4, 4\)"),
        ({"sin": torch.zeros(1, 5, 3)}, r"sin must have the shape \(Bs, T=5, half=4\); got \(1, 5, 3\)"),
        ({"sin": torch.zeros(2, 5, 4).double()}, "sin must match x, which is torch.float32"),
        (dict.fromkeys(("cos", "sin"), torch.zeros(1, 5, 8)), "at most 4 angles for D=8; got 8"),
        ({"impl": "triton"}, "impl='triton' does not exist for apply_rotary"),
    ],
)
def test_bad_rotation_is_named(change, message):
    good = {"x": torch.zeros(2, 3, 5, 8), "cos": torch.zeros(2, 5, 4), "sin": torch.zeros(2, 5, 4)}
    with pytest.raises(ValueError, match=message):
        apply_rotary(**good | change)


def test_places_are_whole_numbers():
    with pytest.raises(ValueError, match=r"places must be of int32 or int64; got torch\.bfloat16"):
        rotary_angles(torch.ones(4), torch.arange(5)[None].bfloat16())


# Sinusoids


def test_sinusoids_are_those_of_a_loop():
    places = torch.tensor([[0, 1, 2, 500], [3, 4, 5, 6]])
    want = np.empty((2, 4, 6))
    for b, t, e in np.ndindex(want.shape):
        angle = places[b, t].item() / 10000 ** (2 * (e // 2) / 6)
        want[b, t, e] = math.cos(angle) if e % 2 else math.sin(angle)
    gold = torch.from_numpy(want)
    for dtype in (torch.float64, torch.float32):
        found = sinusoidal(places, 6, dtype=dtype)
        assert found.dtype == dtype
        assert_within_budget(found, gold, gold, f"sinusoids {dtype}", scale=500.0)


def test_sinusoids_are_those_of_distilbert():
    table = torch.empty(300, 32)
    create_sinusoidal_embeddings(n_pos=300, dim=32, out=table)
    found = sinusoidal(torch.arange(300)[None], 32)[0]
    assert_within_budget(found, table, table, "table", scale=300.0)


def test_odd_widths_are_refused():
    with pytest.raises(ValueError, match="width must be even; got 5"):
        sinusoidal(torch.arange(3)[None], 5)
    with pytest.raises(ValueError, match="need an even hidden size; got 5"):
        SinusoidalPosition(dataclasses.replace(DIMS, hidden=5))


# Layers
