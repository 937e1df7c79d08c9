"""Decoding: a cache changes the time, never the answer."""

import pytest
import torch
from helpers import HYBRID, MIXERS, PATTERNS, assert_same, make, tokens

from nonet.ecosystem import returned_cache
from nonet.registry import part

every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20},
    "beam": {"do_sample": False, "num_beams": 3},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@every_pattern
def test_generate_with_a_cache_writes_the_same_tokens(pattern, way):
    model, prompt = make(pattern), tokens(length=37)
    outs = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        outs.append(model.generate(prompt, max_new_tokens=30, use_cache=use_cache, **way))
    assert outs[0].shape == (2, 67)
    assert torch.equal(outs[0], outs[1])


@every_pattern
@pytest.mark.parametrize("chunks", [(70,), (1,) * 70, (33, 1, 36), (5, 31, 32, 2), (64, 6)], ids=str)
def test_chunks_of_any_size_give_what_one_call_gives(pattern, chunks):
    model, ids = make(pattern), tokens()
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache, parts, at = None, [], 0
        for size in chunks:
            out = model(ids[:, at : at + size], cache=cache, use_cache=True)
            cache, at = returned_cache(out), at + size
            parts.append(out.logits)
    assert_same(torch.cat(parts, 1), whole, "logits in chunks")
    assert cache.get_seq_length() == 70


@every_pattern
def test_prefill_in_chunks_generates_the_same_tokens(pattern):
    model, prompt = make(pattern), tokens(length=37)
    once, chunked = (
        model.generate(prompt, max_new_tokens=12, do_sample=False, prefill_chunk_size=size)
        for size in (None, 8)
    )
    assert torch.equal(once, chunked)


@every_pattern
def test_left_padding_changes_nothing(pattern):
    model, ids = make(pattern), tokens(length=40)
    junk = tokens(length=9, seed=5)
    padded = torch.cat([junk, ids], 1)
    mask = torch.ones_like(padded)
    mask[0, :9] = 0  # the first row is padded; the second has nine real tokens more
    with torch.no_grad():
        alone = model(ids[:1], use_cache=False).logits
        longer = model(padded[1:], use_cache=False).logits
        out = model(padded, attention_mask=mask, use_cache=True)
        assert_same(out.logits[:1, 9:], alone, "padded row")
        assert_same(out.logits[1:], longer, "row beside it")
        following = tokens(length=35, seed=7)
        mask = torch.cat([mask, torch.ones_like(following)], 1)
        more = model(following, attention_mask=mask, cache=returned_cache(out)).logits
        whole = model(torch.cat([ids[:1], following[:1]], 1), use_cache=False).logits
        assert_same(more[:1], whole[:, 40:], "padded row, continued")
    with_padding = model.generate(padded, attention_mask=mask[:, :49], max_new_tokens=20, do_sample=False)
    without = model.generate(ids[:1], max_new_tokens=20, do_sample=False)
    assert torch.equal(with_padding[:1, 49:], without[:, 40:])


@every_pattern
def test_right_padding_does_not_reach_real_tokens(pattern):
    model, ids = make(pattern), tokens(length=40)
    mask = torch.ones_like(ids)
    mask[0, 30:] = 0
    with torch.no_grad():
        out = model(ids, attention_mask=mask, use_cache=False).logits
        assert_same(out[:1, :30], model(ids[:1, :30], use_cache=False).logits)


@every_pattern
def test_a_change_of_the_future_leaves_the_past(pattern):
    model, ids = make(pattern), tokens()
    with torch.no_grad():
        before = model(ids, use_cache=False).logits
        for cut in (1, 31, 32, 33, 69):
            other = ids.clone()
            other[:, cut:] = (other[:, cut:] + 7) % 61
            after = model(other, use_cache=False).logits
            assert_same(after[:, :cut], before[:, :cut], f"before {cut}")
            assert not torch.equal(after[:, cut:], before[:, cut:])


@pytest.mark.parametrize("name", [n for n in MIXERS if part("mixer", n).recurrent])
def test_a_recurrent_state_has_a_constant_size(name):
    from nonet.compare.measure import cache_bytes

    model = make(MIXERS[name])
    sizes = {
        length: cache_bytes(returned_cache(model(tokens(length=length), use_cache=True)))
        for length in (1, 9, 80)
    }
    assert len(set(sizes.values())) == 1
    assert sizes[1] > 0


def test_snapshot_brings_a_state_back():
    model, ids = make(HYBRID), tokens()
    with torch.no_grad():
        cache = returned_cache(model(ids[:, :40], use_cache=True))
        state = next(layer for layer in cache.layers if hasattr(layer, "snapshot"))
        kept, seen = state.snapshot(), state.seen
        model(ids[:, 40:50], cache=cache)
        assert state.seen == 50
        state.restore(kept)
        assert state.seen == seen == 40
        assert all(torch.equal(state.get(n), t) for n, t in kept[0].items())


def test_inputs_embeds_and_logits_to_keep():
    model, ids = make(HYBRID), tokens()
    embeds = model.get_input_embeddings()(ids)
    with torch.no_grad():
        whole = model(ids).logits
        assert_same(model(inputs_embeds=embeds).logits, whole)
        assert_same(model(ids, logits_to_keep=3).logits, whole[:, -3:])
        assert_same(model(ids, logits_to_keep=torch.tensor([0, 5])).logits, whole[:, [0, 5]])
        generated = model.generate(inputs_embeds=embeds, max_new_tokens=5, do_sample=False)
    assert torch.equal(generated, model.generate(ids, max_new_tokens=5, do_sample=False)[:, 70:])


def test_plain_tuples_and_hidden_states():
    model, ids = make(HYBRID), tokens()
    out = model(ids, output_hidden_states=True, use_cache=False)
    assert len(out.hidden_states) == 3
    assert torch.equal(model(ids, return_dict=False, use_cache=False)[0], out.logits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attention_mask": torch.tensor([[1, 0, 1, 1]])}, "zeros between ones"),
        ({"attention_mask": torch.tensor([[0, 0, 0, 0]])}, "no ones"),
        ({"attention_mask": torch.ones(1, 3)}, "got 3 columns"),
        ({"attention_mask": torch.ones(1, 1, 4, 4)}, "must be \\(batch, length\\)"),
        ({"position_ids": torch.tensor([[0, 1, 0, 1]])}, "packed"),
        ({"output_attentions": True}, "output_attentions"),
        ({"inputs_embeds": torch.zeros(1, 4, 32)}, "exactly one"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_cannot_be_served_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make()(tokens(1, 4), **arguments)


def test_a_static_cache_is_refused():
    with pytest.raises(ValueError, match="StaticCache"):
        make("F").generate(tokens(), max_new_tokens=2, cache_implementation="static")
