"""What a call of the model may hold, and that nothing in it goes unheard."""

import inspect

import pytest
import torch
from helpers import HYBRID, MIXERS, PATTERNS, assert_same, make, tokens
from transformers import DynamicCache

from nonet.ecosystem import CACHE, CACHE_NAMES, returned_cache
from nonet.model import NonetConfig, NonetForSequenceClassification

every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@every_pattern
def test_a_cache_counts_under_the_names_of_every_version(pattern, name):
    model, ids = make(pattern), tokens(length=20)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        first = model(ids[:, :15], use_cache=True)
        rest = model(ids[:, 15:], use_cache=True, **{name: returned_cache(first)}).logits
    assert_same(rest, whole[:, 15:])


def test_a_cache_given_twice_is_refused():
    model, ids = make(), tokens(length=4)
    cache = DynamicCache(config=model.config)
    with pytest.raises(ValueError, match="cache and past_key_values"):
        model(ids, cache=cache, past_key_values=cache)


def test_outputs_have_the_cache_where_this_version_of_transformers_looks_for_it():
    out = make()(tokens(length=4))
    assert CACHE in out
    assert CACHE in CACHE_NAMES
    assert out[CACHE].get_seq_length() == 4


@pytest.mark.parametrize(
    "name", ["cache_params", "cache_position", "cu_seq_lens_q", "seq_idx", "token_type_ids"]
)
def test_an_argument_that_is_not_understood_is_refused_by_name(name):
    model = make()
    classifier = NonetForSequenceClassification(NonetConfig(**{**model.config.to_dict(), "is_causal": False}))
    for called in (model, model.model, classifier):
        with pytest.raises(TypeError, match=f"{type(called).__name__} does not understand {name}"):
            called(tokens(length=4), **{name: torch.zeros(1)})
        called(tokens(length=4), **{name: None})


@pytest.mark.parametrize("pattern", [MIXERS["flash"], HYBRID])
def test_an_empty_cache_without_a_configuration_gets_the_layers_of_the_model(pattern):
    model, ids = make(pattern), tokens(length=12)
    cache = DynamicCache()
    with torch.no_grad():
        model(ids[:, :9], cache=cache)
        assert_same(model(ids[:, 9:], cache=cache).logits, model(ids, use_cache=False).logits[:, 9:])


def test_a_cache_of_another_model_is_refused():
    model, deeper = make(HYBRID), make("F", num_hidden_layers=3)
    with torch.no_grad():
        cache = returned_cache(deeper(tokens(length=4)))
        with pytest.raises(ValueError, match="the 2 layers that this model needs; got a DynamicCache of 3"):
            model(tokens(length=4), cache=cache)
        cache = returned_cache(make("F")(tokens(length=4)))
        with pytest.raises(ValueError, match="got a DynamicCache of 2 layers"):
            model(tokens(length=4), cache=cache)
    with pytest.raises(TypeError, match="got tuple"):
        model(tokens(length=4), cache=())


@every_pattern
def test_the_head_makes_logits_of_the_last_hidden_state(pattern):
    model = make(pattern)
    out = model(tokens(length=6), output_hidden_states=True)
    assert len(out.hidden_states) == model.config.num_hidden_layers + 1
    assert torch.equal(model.lm_head(out.hidden_states[-1]), out.logits)


@pytest.mark.parametrize("mask", [None, [1] * 8, [0] + [1] * 7, [1] * 7 + [0]], ids=str)
@pytest.mark.parametrize("places", [[0, 1, 2, 3, 0, 1, 2, 3], [0, 1, 2, 0, 0, 0, 1, 2]], ids=str)
@every_pattern
def test_packed_rows_are_refused_whatever_the_mask(pattern, places, mask):
    mask = None if mask is None else torch.tensor([mask])
    with pytest.raises(ValueError, match="packed"):
        make(pattern)(tokens(1, 8), position_ids=torch.tensor([places]), attention_mask=mask)


def test_positions_on_padding_may_be_anything():
    model, ids = make(), tokens(1, 8)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    places = torch.tensor([[1, 1, 0, 1, 2, 3, 4, 5]])
    with torch.no_grad():
        named = model(ids, position_ids=places, attention_mask=mask).logits
        assert_same(named[:, 2:], model(ids, attention_mask=mask).logits[:, 2:])


def test_positions_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"position_ids must be \(batch, 4\)"):
        make()(tokens(1, 4), position_ids=torch.arange(5)[None])


@pytest.mark.parametrize("chunk", [3, 8])
@every_pattern
def test_a_chunked_prefill_may_begin_with_padding_alone(pattern, chunk):
    model, prompt = make(pattern), tokens(length=21)
    mask = torch.ones_like(prompt)
    mask[0, :10] = 0
    way = {"attention_mask": mask, "max_new_tokens": 9, "do_sample": False}
    once, chunked = (model.generate(prompt, prefill_chunk_size=size, **way) for size in (None, chunk))
    assert torch.equal(once, chunked)
    alone = model.generate(prompt[:1, 10:], max_new_tokens=9, do_sample=False)
    assert torch.equal(chunked[0, 21:], alone[0, 11:])


LENGTHS = {
    "dynamic": {
        "position": "rope",
        "options": {"rope": {"scaling": {"kind": "dynamic", "factor": 4.0, "original_length": 16}}},
    },
    "longrope": {
        "position": "rope",
        "options": {
            "rope": {
                "scaling": {
                    "kind": "longrope",
                    "factor": 4.0,
                    "original_length": 30,
                    "short_factor": [1.0, 1.5, 2.0, 2.5],
                    "long_factor": [2.0, 3.0, 4.0, 5.0],
                }
            }
        },
    },
    "alibi": {
        "position": "alibi",
        "options": {"alibi": {"interpolate": True}},
        "max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("fields", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pattern", [MIXERS["flash"], MIXERS["reformer"], MIXERS["linformer"]])
def test_what_depends_on_the_length_reads_the_real_one(pattern, side, fields):
    model, ids = make(pattern, **fields), tokens(3, 40)
    mask, real = torch.ones_like(ids), slice(13, None) if side == "left" else slice(None, 27)
    mask[0, :13] = 0
    if side == "right":
        mask[0] = mask[0].flip(0)
    with torch.no_grad():
        out = model(ids, attention_mask=mask, use_cache=False).logits
        assert_same(out[:1, real], model(ids[:1, real], use_cache=False).logits, "padded row")
        assert_same(out[1:], model(ids[1:], use_cache=False).logits, "rows without padding")
        if side == "left":  # the length grows, and so the angles change: the row alone must do the same
            padded, alone = (
                returned_cache(model(ids[rows, begin:30], attention_mask=mask[rows, begin:30]))
                for rows, begin in ((slice(None), 0), (slice(1), 13))
            )
            rest = model(ids[:, 30:], attention_mask=mask, cache=padded).logits
            assert_same(rest[:1], model(ids[:1, 30:], cache=alone).logits, "padded row, continued")


def test_forward_passes_name_what_they_take():
    for called in (make(), make().model):
        names = inspect.signature(called.forward).parameters
        assert {"input_ids", "attention_mask", "position_ids", "cache", "past_key_values"} <= set(names)
