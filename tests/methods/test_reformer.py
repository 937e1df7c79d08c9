"""Reformer against Transformers' module and a loop over the paper's definition."""

import math
import re

import numpy as np
import pytest
import torch
from common import assert_same
from torch import nn
from torch.nn import functional as F
from transformers import ReformerConfig as TransformersConfig
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from nonet.reformer import (
    ReformerConfig,
    ReformerMixer,
    lsh_attention,
    lsh_buckets,
    lsh_rotations,
)
from nonet.reformer.reference import shown
from nonet.slots import Context, Dims, Memo
from nonet.testing import assert_within_rounding

B, H, D = 2, 2, 8


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def hashed(qk, n_hashes=2, n_buckets=6, seed=0):
    heads, width = qk.shape[1], qk.shape[-1]
    return lsh_buckets(
        qk, lsh_rotations(width, heads=heads, n_hashes=n_hashes, n_buckets=n_buckets, seed=seed)
    )


# The hash


@pytest.mark.parametrize("factors", [1, 2])
def test_hash_is_that_of_transformers(factors):
    n, rounds = 6, 3
    config = TransformersConfig(
        num_attention_heads=H, attention_head_size=D, hidden_size=H * D, hash_seed=5,
        num_buckets=[n] * factors if factors > 1 else n,
    )  # fmt: skip
    x = random(B, H, 40, D, dtype=torch.float64)  # in which no direction is as near as another
    theirs = LSHSelfAttention(config)._hash_vectors(x, rounds, None).view(B, H, rounds, 40)
    theirs = theirs - n**factors * torch.arange(rounds)[:, None]  # they number the rounds through
    torch.manual_seed(5)
    rotations = torch.randn(H, D, rounds, factors, n // 2, dtype=x.dtype).permute(0, 2, 3, 1, 4)
    assert torch.equal(lsh_buckets(x, rotations).long(), theirs)


@pytest.mark.parametrize(
    ("wanted", "buckets"), [(1, 2), (7.9, 8), (128, 128), (129, 144), (256, 256), (1000, 1024)]
)
def test_number_of_buckets(wanted, buckets):
    rotations = lsh_rotations(D, heads=1, n_hashes=1, n_buckets=wanted, seed=0)
    assert (2 * rotations.shape[-1]) ** rotations.shape[2] == buckets
    found = lsh_buckets(random(1, 1, 4000, D), rotations)
    assert found.min() >= 0
    assert found.max() < buckets


def test_hash_sees_only_directions():
    x = random(B, H, 40, D, dtype=torch.float64)
    assert torch.equal(hashed(x), hashed(4 * x))
    assert torch.equal(hashed(x)[:, :, :, :9], hashed(x[:, :, :9]))


# Attention


def by_loop(qk, v, buckets, window, causal, attend):
    """Section 2 and appendix A, token by token: rounds under the mask of eq. 16, merged by log-sum-exp."""
    qk, v, buckets = (x.double().numpy() for x in (qk, v, buckets))
    out = np.zeros_like(v)
    for b, h in np.ndindex(qk.shape[:2]):
        sets = [
            [loop_set(i, row, window, causal, attend) for row in buckets[b, h]] for i in range(qk.shape[2])
        ]
        for i, rounds in enumerate(sets):
            z, o = [], []
            for seen in rounds:
                s = [
                    qk[b, h, i] @ qk[b, h, j] / np.linalg.norm(qk[b, h, j])
                    - (1e5 if j == i else np.log(sum(j in other for other in rounds)))
                    for j in seen
                ]
                top = max(s)
                w = np.exp(np.array(s) - top)
                z.append(top + np.log(w.sum()))
                o.append(w @ v[b, h, seen] / w.sum())
            share = np.exp(np.array(z) - max(z))
            out[b, h, i] = share @ np.array(o) / share.sum()
    return torch.from_numpy(out)


def loop_set(i, buckets, window, causal, attend):
    """P_i of one round."""
    mates = [j for j in range(len(buckets)) if buckets[j] == buckets[i]]
    if attend == "bucket":
        mates = [j for j in mates if abs(mates.index(j) - mates.index(i)) < window]
    else:
        order = sorted(range(len(buckets)), key=lambda j: (buckets[j], j))
        chunk = order.index(i) // window
        mates = [j for j in mates if order.index(j) // window in (chunk - 1, chunk)]
    return [j for j in mates if j <= i] if causal else mates


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("attend", ["bucket", "chunk"])
@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_attention_is_the_definition(attend, causal, impl):
    qk, v = (random(1, H, 41, D, seed=s, dtype=torch.float64) for s in (0, 1))
    buckets = hashed(qk, n_hashes=3)
    options = {"n_hashes": 3, "bucket_size": 2, "causal": causal, "attend": attend, "buckets": buckets}
    assert_same(lsh_attention(qk, v, impl=impl, **options), by_loop(qk, v, buckets, 4, causal, attend))


@pytest.mark.parametrize("causal", [True, False])
def test_loose_attention_is_that_of_transformers_but_for_the_first_chunk(causal):
    """Where theirs wraps around to the last chunk, ours sees nothing before."""
    T, chunk, n, rounds = 64, 8, 6, 2
    config = TransformersConfig(
        num_attention_heads=H, attention_head_size=D, hidden_size=H * D, is_decoder=causal,
        lsh_attn_chunk_length=chunk, num_hashes=rounds, num_buckets=n,
    )  # fmt: skip
    torch.manual_seed(0)
    layer = LSHSelfAttention(config).double()
    layer._len_norm = lambda x: F.normalize(x, dim=-1) * D**0.5  # without their epsilon
    nn.init.normal_(layer.query_key.weight)
    x = random(B, T, H * D, dtype=torch.float64)
    qk, v = (
        proj(x).detach().unflatten(-1, (H, D)).transpose(1, 2) for proj in (layer.query_key, layer.value)
    )
    buckets = hashed(qk, rounds, n)

    offset = buckets.long() + n * torch.arange(rounds)[:, None]
    theirs = layer(x, buckets=offset.flatten(2)).hidden_states.unflatten(-1, (H, D)).transpose(1, 2)
    options = {"n_hashes": rounds, "bucket_size": chunk // 2, "attend": "loose", "causal": causal}
    ours = lsh_attention(qk, v, buckets=buckets, **options)
    place = buckets.argsort(dim=-1, stable=True).argsort(dim=-1)
    rows = (place >= chunk).all(2)
    assert rows.sum() > B * H * T // 2
    assert_same(ours[rows], theirs[rows])


def full_attention(qk, v):
    """Causal attention to every other key; the first token has only itself."""
    s = qk @ F.normalize(qk, dim=-1).mT
    s = s.masked_fill(torch.ones(s.shape[-2:]).triu().bool(), -torch.inf)
    s[..., 0, 0] = 0
    return s.softmax(-1) @ v


@pytest.mark.parametrize("attend", ["bucket", "chunk", "loose"])
def test_one_bucket_and_a_wide_window_are_full_attention(attend):
    qk, v = (random(B, H, 50, D, seed=s, dtype=torch.float64) for s in (0, 1))
    buckets = torch.zeros(B, H, 1, 50, dtype=torch.long)
    out = lsh_attention(qk, v, n_hashes=1, bucket_size=25, buckets=buckets, attend=attend)
    assert_same(out, full_attention(qk, v))


def test_more_rounds_come_nearer_to_full_attention():
    qk, v = random(B, H, 96, D), random(B, H, 96, D, seed=1)
    full = full_attention(qk, v)

    def error(rounds):
        out = lsh_attention(qk, v, n_hashes=rounds, bucket_size=48, n_buckets=4)
        return (out - full).square().mean().item()

    errors = [error(rounds) for rounds in (1, 4, 16, 64)]
    assert errors == sorted(errors, reverse=True)


def test_enough_rounds_are_full_attention():
    qk, v = (random(B, H, 96, D, seed=s, dtype=torch.float64) for s in (0, 1))
    qk += 1  # no two vectors are opposite
    buckets = hashed(qk, n_hashes=48, n_buckets=2)
    met = shown(buckets, window=96, causal=True, attend="bucket", real=None).any(2)
    assert torch.equal(met, torch.ones_like(met).tril())
    out = lsh_attention(qk, v, n_hashes=48, bucket_size=48, buckets=buckets, impl="torch")
    assert_same(out, full_attention(qk, v))


def test_a_later_token_moves_chunks_but_no_window_of_a_bucket():
    qk, v = (random(1, 1, 64, D, seed=s, dtype=torch.float64) for s in (0, 1))
    buckets = hashed(qk, 1, 4)
    moved = buckets.clone()
    moved[..., -1] = 0 if buckets[..., -1] != 0 else 1
    for attend, stays in (("bucket", True), ("chunk", False), ("loose", False)):
        sets = [
            shown(x, window=8, causal=True, attend=attend, real=None)[..., :-1, :-1] for x in (buckets, moved)
        ]
        assert torch.equal(*sets) == stays, attend
    options = {"n_hashes": 1, "bucket_size": 4}
    assert_same(*(lsh_attention(qk, v, buckets=x, **options)[:, :, :-1] for x in (moved, buckets)))


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("attend", ["bucket", "chunk"])
def test_no_gradient_reaches_the_future(attend, impl):
    qk, v = (random(1, 1, 40, D, seed=s).requires_grad_() for s in (0, 1))
    out = lsh_attention(qk, v, n_hashes=2, bucket_size=4, attend=attend, impl=impl)
    for grad in torch.autograd.grad(out[:, :, :20].sum(), (qk, v)):
        assert grad[:, :, 20:].count_nonzero() == 0
        assert grad[:, :, :20].count_nonzero() > 0


@pytest.mark.parametrize("impl", ["torch", "reference"])
@pytest.mark.parametrize("attend", ["bucket", "chunk", "loose"])
def test_a_token_that_sees_nothing_else_is_its_own_value(attend, impl):
    v = random(B, H, 1, D)
    out = lsh_attention(random(B, H, 1, D), v, n_hashes=2, bucket_size=4, attend=attend, impl=impl)
    assert torch.equal(out, v)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("attend", ["bucket", "chunk", "loose"])
def test_gradients_by_finite_differences(attend, causal):
    qk, v = (random(1, 1, 11, 3, seed=s, dtype=torch.float64).requires_grad_() for s in (0, 1))
    buckets = hashed(qk, 2, 2)

    def attention(qk, v):
        return lsh_attention(
            qk, v, n_hashes=2, bucket_size=2, buckets=buckets, attend=attend, causal=causal, impl="torch"
        )

    assert torch.autograd.gradcheck(attention, (qk, v), fast_mode=True)


@pytest.mark.parametrize("attend", ["bucket", "chunk", "loose"])
@pytest.mark.parametrize("T", [5, 60])
def test_half_precision(attend, T):
    qk, v = (random(B, H, T, D, seed=s, dtype=torch.float16) for s in (0, 1))
    options = {"n_hashes": 2, "bucket_size": 4, "attend": attend, "buckets": hashed(qk)}
    wide = qk.double(), v.double()
    found = lsh_attention(qk, v, **options)
    assert_within_rounding(found, lambda: lsh_attention(*wide, impl="reference", **options))


@pytest.mark.parametrize("attend", ["bucket", "chunk", "loose"])
@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing_and_comes_out_as_zero(attend, causal):
    qk, v = (random(1, H, 30, D, seed=s, dtype=torch.float64) for s in (0, 1))
    options = {"n_hashes": 2, "bucket_size": 4, "n_buckets": 4, "attend": attend, "causal": causal}
    before, after = (random(1, H, n, D, seed=n, dtype=torch.float64) for n in (5, 6))
    wide = [torch.cat([before, x, after], dim=2) for x in (qk, v)]
    out = lsh_attention(*wide, key_starts=torch.tensor([5]), key_lengths=torch.tensor([35]), **options)
    assert_same(out[:, :, 5:35], lsh_attention(qk, v, **options))
    assert out[:, :, :5].count_nonzero() == out[:, :, 35:].count_nonzero() == 0


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch.compile does so itself
@pytest.mark.parametrize("attend", ["bucket", "chunk", "loose"])
def test_compiles_to_one_graph(attend):
    qk, v = (random(B, H, 40, D, seed=s).requires_grad_() for s in (0, 1))
    rotations = lsh_rotations(D, heads=H, n_hashes=2, n_buckets=6, seed=0)

    def attention(qk, v):
        buckets = lsh_buckets(qk, rotations)
        return lsh_attention(qk, v, n_hashes=2, bucket_size=4, attend=attend, buckets=buckets)

    torch.compiler.reset()
    outs = [f(qk, v) for f in (torch.compile(attention, backend="aot_eager", fullgraph=True), attention)]
    assert torch.equal(*outs)
    assert all(map(torch.equal, *(torch.autograd.grad(out.sum(), (qk, v)) for out in outs)))


def test_vectors_of_length_zero_are_finite():
    qk = torch.zeros(1, 1, 40, D, requires_grad=True)
    out = lsh_attention(qk, random(1, 1, 40, D), n_hashes=2, bucket_size=4)
    (grad,) = torch.autograd.grad(out.sum(), qk)
    assert out.isfinite().all()
    assert grad.isfinite().all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"v": random(B, H, 9, D)}, "v must have the shape (B=2, H=2, T=10, D=8); got (2, 2, 9, 8)"),
        ({"n_hashes": 0}, "n_hashes must be a whole number above zero; got 0"),
        ({"bucket_size": 0}, "bucket_size must be a whole number above zero; got 0"),
        ({"attend": "all"}, "attend='all' is not known; choose from bucket, chunk, loose"),
        ({"queries": 11}, "queries must be a whole number from 1 to 10; got 11"),
        ({"buckets": torch.zeros(B, H, 3, 10).int()}, "buckets must hold n_hashes=2 rounds; got R=3"),
        ({"buckets": torch.zeros(B, H, 2, 10)}, "buckets must be of int32 or int64; got torch.float32"),
        ({"alibi_slopes": torch.ones(3)}, "alibi_slopes must have the shape ([B=2], H=2); got (3,)"),
        ({"key_starts": torch.ones(3)}, "key_starts must have the shape (B=2); got (3,)"),
        ({"v": random(B, H, 10, D).double()}, "v must match qk"),
        ({"impl": "cuda"}, "impl='cuda' does not exist"),
    ],
)
def test_bad_arguments_of_attention(change, message):
    qk = random(B, H, 10, D)
    arguments = {"qk": qk, "v": qk, "n_hashes": 2, "bucket_size": 4, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        lsh_attention(**arguments)


def test_bad_rotations():
    with pytest.raises(ValueError, match="rotations must have 1 head or H=2; got 3"):
        lsh_buckets(random(B, H, 10, D), random(3, 1, 1, D, 2))


# The mixer


class DictState(dict):
    """A layer's memory as the model's cache keeps it."""

    def put(self, name, value):
        self[name] = value


class Turn:
    """A rotation of pairs, whose angles shrink with the context if they are of the whole."""

    def __init__(self, length=1, of_whole=False):
        self.length, self.of_whole = length, of_whole

    def __call__(self, x, places):
        angle = (places / (math.log(self.length) if self.of_whole else 1.0)).to(x)[:, None, :, None]
        a, b = x.chunk(2, dim=-1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)


def tokens(*shape, seed=0):
    return random(*shape, seed=seed, dtype=torch.float64)


def mixer(causal=True, **options):
    dims = Dims(hidden=16, heads=H, kv_heads=1, head_dim=D, layers=1, max_length=64, causal=causal)
    torch.manual_seed(0)
    return ReformerMixer(dims, ReformerConfig(bucket_size=4, **options), 0, nn.Linear).double()


def context(T, past=0, starts=None, **options):
    places = torch.arange(past, past + T)[None]
    if starts is not None:
        places = (places - starts[:, None]).clamp(min=0)
    return Context(places=places, past=past, starts=starts, **options)


@pytest.mark.parametrize("cuts", [[1] * 40, [13, 1, 26], [39, 1]])
@pytest.mark.parametrize("of_whole", [None, False, True])
@torch.no_grad()
def test_a_cache_in_parts_of_any_size_is_one_call(cuts, of_whole):
    def turn(length):
        return None if of_whole is None else Turn(40 if of_whole else length, of_whole)

    x, layer, state, parts, past = tokens(B, 40, 16), mixer(), DictState(), [], 0
    for T in cuts:
        parts.append(layer(x[:, past : past + T], context(T, past, rotation=turn(past + T)), state))
        past += T
    whole = mixer(impl="reference")(x, context(40, rotation=turn(40)))
    assert_same(torch.cat(parts, 1), whole)
    assert set(state) == ({"qk", "v"} if of_whole else {"qk", "v", "buckets"})


@torch.no_grad()
def test_rotation_and_slopes_reach_the_scores():
    layer, x = mixer(), tokens(B, 40, 16)
    plain = layer(x, context(40))
    turned = layer(x, context(40, rotation=Turn()))
    assert not torch.equal(turned, plain)
    assert torch.equal(turned, layer(x, context(40, rotation=Turn(math.e, of_whole=True))))
    assert not torch.equal(layer(x, context(40, slopes=torch.tensor([0.5, 0.25]))), plain)


@pytest.mark.parametrize("causal", [True, False])
@torch.no_grad()
def test_padding_of_a_batch_changes_no_row(causal):
    x = tokens(1, 30, 16)
    wide = torch.cat([tokens(1, 5, 16, seed=1), x, tokens(1, 4, 16, seed=2)], dim=1)
    bounds = {"starts": torch.tensor([5]), "ends": torch.tensor([35])}
    slopes = torch.tensor([0.5, 0.25])
    padded = mixer(causal)(wide, context(39, rotation=Turn(), slopes=slopes, **bounds))[:, 5:35]
    alone = context(30, rotation=Turn(), slopes=slopes)
    assert_same(padded, mixer(causal, impl="reference")(x, alone))


@torch.no_grad()
def test_left_padding_with_a_cache():
    x = tokens(1, 20, 16)
    wide = torch.cat([tokens(1, 5, 16, seed=1), x], dim=1)
    layer, state, starts = mixer(), DictState(), torch.tensor([5])
    parts = [layer(wide[:, :23], context(23, starts=starts, rotation=Turn()), state)]
    parts += [
        layer(wide[:, 23 + t :][:, :1], context(1, 23 + t, starts, rotation=Turn()), state) for t in (0, 1)
    ]
    alone = context(20, rotation=Turn())
    assert_same(torch.cat(parts, 1)[:, 5:], mixer(impl="reference")(x, alone))


@pytest.mark.parametrize("attend", ["chunk", "loose"])
def test_a_cache_is_refused_where_it_would_be_wrong(attend):
    layer, x = mixer(attend=attend), tokens(1, 8, 16)
    assert layer(x, context(8)).shape == x.shape
    with pytest.raises(ValueError, match=f"attend='{attend}' cannot decode from a cache"):
        layer(x, context(8), DictState())


def test_rotations_are_saved_and_differ_between_layers_and_seeds():
    layers = [
        ReformerMixer(
            Dims(hidden=16, heads=H, kv_heads=H, head_dim=D, layers=2, max_length=64),
            ReformerConfig(seed=seed),
            layer,
            nn.Linear,
        )
        for seed, layer in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    first, *others = (layer.state_dict()["rotations"] for layer in layers)
    assert [torch.equal(first, other) for other in others] == [True, False, False]


def test_buckets_are_replayed_from_the_memo():
    layer, x, ctx = mixer(), tokens(1, 40, 16), context(40, memo=Memo())
    first = layer(x, ctx)
    layer.rotations.normal_()  # other buckets would be chosen now
    assert not torch.equal(first, layer(x, context(40)))
    ctx.memo.rewind()
    assert torch.equal(first, layer(x, ctx))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_hashes": 0}, "n_hashes must be above zero; got 0"),
        ({"bucket_size": -1}, "bucket_size must be above zero; got -1"),
        ({"n_buckets": 0}, "n_buckets must be above zero; got 0"),
        ({"attend": "local"}, "attend='local' is not known; choose from bucket, chunk, loose"),
    ],
)
def test_bad_options_of_the_mixer(options, message):
    with pytest.raises(ValueError, match=message):
        ReformerConfig(**options)
