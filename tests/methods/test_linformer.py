import numpy as np
import pytest
import torch
from common import assert_same, normal
from torch.nn.functional import scaled_dot_product_attention

from nonet.linformer import (
    LinformerSelfAttention,
    block_linformer_attention,
    linformer_attention,
    summarise,
)
from nonet.position import alibi_slopes

IMPLS = ("torch", "reference")
BLOCK = 4


def identity(size):
    return torch.eye(size).double()


def softmax(s):
    p = np.exp(s - s.max())
    return p / p.sum()


def exactly(*shape, seed=0):
    return normal(*shape, seed=seed, dtype=torch.float64)


# The paper's form.


def whole_loop(q, k, v, e, f, starts=None, ends=None):
    out = np.zeros_like(q)
    group = q.shape[1] // k.shape[1]
    for b, h in np.ndindex(q.shape[:2]):
        g = h // group
        start = 0 if starts is None else starts[b]
        end = k.shape[2] if ends is None else ends[b]
        E, F = (x if x.ndim == 2 else x[g] for x in (e, f))
        slot_k = sum(np.outer(E[:, j], k[b, g, start + j]) for j in range(end - start))
        slot_v = sum(np.outer(F[:, j], v[b, g, start + j]) for j in range(end - start))
        for t in range(q.shape[2]):
            out[b, h, t] = softmax(slot_k @ q[b, h, t] / np.sqrt(q.shape[3]).astype(q.dtype)) @ slot_v
    return out


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("matrices", [(), (2,)], ids=["one pair", "a pair a head"])
@pytest.mark.parametrize("bounds", [(None, None), ([0, 3], None), (None, [9, 5]), ([2, 3], [9, 5])])
def test_equals_a_plain_loop(impl, matrices, bounds):
    q, k, v = exactly(2, 4, 9, 8), exactly(2, 2, 9, 8, seed=1), exactly(2, 2, 9, 8, seed=2)
    e, f = exactly(*matrices, 3, 12, seed=3), exactly(*matrices, 3, 12, seed=4)
    expected = whole_loop(*(x.numpy() for x in (q, k, v, e, f)), *bounds)
    starts, ends = (None if b is None else torch.tensor(b) for b in bounds)
    out = linformer_attention(q, k, v, e, f, key_starts=starts, key_lengths=ends, impl=impl)
    assert_same(out, torch.from_numpy(expected))


@pytest.mark.parametrize("impl", IMPLS)
def test_with_as_many_slots_as_tokens_it_is_exact_attention(impl):
    q, k, v = (exactly(2, 4, 16, 8, seed=s) for s in range(3))
    out = linformer_attention(q, k, v, identity(16), identity(16), impl=impl)
    assert_same(out, scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_short_text_uses_the_first_columns(impl):
    q, k, v = (normal(2, 4, 5, 8, seed=s) for s in range(3))
    e, f = normal(3, 12, seed=3), normal(3, 12, seed=4)
    whole = linformer_attention(q, k, v, e, f, impl=impl)
    assert torch.equal(whole, linformer_attention(q, k, v, e[:, :5], f[:, :5], impl=impl))


@pytest.mark.parametrize("impl", IMPLS)
def test_what_stands_in_padding_does_not_matter(impl):
    q, k, v = (normal(2, 4, 9, 8, seed=s) for s in range(3))
    e = normal(3, 12, seed=3)
    bounds = {"key_starts": torch.tensor([2, 0]), "key_lengths": torch.tensor([9, 6])}
    before = linformer_attention(q, k, v, e, e, **bounds, impl=impl)
    for x in (k, v):
        x[0, :, :2] = torch.nan
        x[1, :, 6:] = torch.inf
    assert torch.equal(before, linformer_attention(q, k, v, e, e, **bounds, impl=impl))


def test_projecting_tokens_first_is_the_same():
    """E (X W) = (E X) W, which is how the authors' code computes it."""
    layer = LinformerSelfAttention(32, 4, length=12, k=3, sharing="headwise").double()
    x = exactly(2, 9, 32)
    e, f = layer.mixer.projections()
    q, k, v = (
        proj(y).unflatten(-1, (4, 8)).transpose(1, 2)
        for proj, y in (
            (layer.mixer.q_proj, x),
            (layer.mixer.k_proj, e[:, :9] @ x),
            (layer.mixer.v_proj, f[:, :9] @ x),
        )
    )
    out = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2)
    assert_same(layer(x), layer.mixer.o_proj(out))


# The block-causal form.


def block_loop(q, k, v, e, f, slopes):
    out = np.zeros_like(q)
    group, (slots, size) = q.shape[1] // k.shape[1], e.shape[-2:]
    for b, h, t in np.ndindex(q.shape[:3]):
        g, own = h // group, t // size
        E, F = (x if x.ndim == 2 else x[g] for x in (e, f))
        keys, values, distances = [], [], []
        for m in range(own):
            for n in range(slots):
                block = range(m * size, m * size + size)
                keys.append(sum(E[n, i] * k[b, g, j] for i, j in enumerate(block)))
                values.append(sum(F[n, i] * v[b, g, j] for i, j in enumerate(block)))
                distances.append(t - (m * size + size // 2))
        for j in range(own * size, t + 1):
            keys.append(k[b, g, j])
            values.append(v[b, g, j])
            distances.append(t - j)
        s = np.stack(keys) @ q[b, h, t] / np.sqrt(q.shape[3]).astype(q.dtype)
        out[b, h, t] = softmax(s - slopes[h] * np.array(distances, dtype=q.dtype)) @ np.stack(values)
    return out


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("matrices", [(), (2,)], ids=["one pair", "a pair a head"])
@pytest.mark.parametrize("slopes", [torch.zeros(4), alibi_slopes(4)], ids=["plain", "linear bias"])
@pytest.mark.parametrize("length", [1, 4, 5, 11])
def test_blocks_equal_a_plain_loop(impl, matrices, slopes, length):
    q, k, v = exactly(2, 4, length, 8), exactly(2, 2, length, 8, seed=1), exactly(2, 2, length, 8, seed=2)
    e, f = exactly(*matrices, 3, BLOCK, seed=3), exactly(*matrices, 3, BLOCK, seed=4)
    expected = block_loop(*(x.numpy() for x in (q, k, v, e, f)), slopes.double().numpy())
    bias = slopes if bool(slopes.any()) else None
    slot_k, slot_v = summarise(k, e, BLOCK), summarise(v, f, BLOCK)
    out = block_linformer_attention(q, k, v, slot_k, slot_v, block_size=BLOCK, alibi_slopes=bias, impl=impl)
    assert_same(out, torch.from_numpy(expected))


@pytest.mark.parametrize("impl", IMPLS)
def test_with_as_many_slots_as_a_block_has_tokens_it_is_exact_causal_attention(impl):
    q, k, v = (exactly(2, 4, 18, 8, seed=s) for s in range(3))
    slot_k, slot_v = (summarise(x, identity(BLOCK), BLOCK) for x in (k, v))
    out = block_linformer_attention(q, k, v, slot_k, slot_v, block_size=BLOCK, impl=impl)
    assert_same(out, scaled_dot_product_attention(q, k, v, is_causal=True))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("new", [1, 3, 6, 9])
def test_rows_may_stand_at_different_places(impl, new):
    """Row b continues behind past[b] tokens; its keys begin with the block of its first query."""
    q, k, v = (exactly(3, 2, 20, 8, seed=s) for s in range(3))
    e = exactly(2, BLOCK, seed=3)
    slot_k, slot_v = (summarise(x, e, BLOCK) for x in (k, v))
    whole = block_linformer_attention(q, k, v, slot_k, slot_v, block_size=BLOCK, impl="reference")
    past = torch.tensor([0, 6, 11])
    seen = new + BLOCK - 1

    def part(x, first, size):
        return torch.stack([x[b, :, at : at + size] for b, at in enumerate(first.tolist())])

    first = past - past % BLOCK
    out = block_linformer_attention(
        part(q, past, new),
        part(k, first, seen),
        part(v, first, seen),
        slot_k,
        slot_v,
        block_size=BLOCK,
        past=past,
        impl=impl,
    )
    assert_same(out, part(whole, past, new))
