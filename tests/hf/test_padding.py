"""Padding is as if it were not there: not in the answer, not in the states, not in the gradients."""

import pytest
import torch
from hf_models import KINDS, assert_same, cached, make, mixers, pair, tokens
from transformers import DynamicCache

from nonet.ecosystem import returned_cache

every_kind = pytest.mark.parametrize("kind", KINDS)
# Real tokens of three rows: without padding, with some on the left, and one where only the last is real.
LEFT = (12, 7, 1)


def _mask(counts, length, side="left"):
    places = torch.arange(length).expand(len(counts), -1)
    counts = torch.tensor(counts)[:, None]
    return (places >= length - counts if side == "left" else places < counts).long()


def _alone(model, row):
    with torch.no_grad():
        out = model(row[None], use_cache=True)
    return out.logits[0], returned_cache(out)


def _assert_row(out, row, mask, logits, cache):
    """Holds one row of a padded call to what its real tokens give alone."""
    if count := int(mask[row].sum()):
        assert_same(out.logits[row][mask[row].bool()], logits[-count:], f"row {row}")
    for i in range(2):
        conv, ssm = returned_cache(out).get_conv_state(i), returned_cache(out).get_recurrent_state(i)
        assert_same(conv[row], cache.get_conv_state(i)[0], f"row {row}, convolution {i}")
        assert_same(ssm[row], cache.get_recurrent_state(i)[0], f"row {row}, recurrence {i}")


@every_kind
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_and_states_are_those_without_padding(kind, bias, side):
    _, model = pair(kind, torch.float64, use_bias=bias)
    ids, mask = tokens(3, 12), _mask(LEFT, 12, side)
    with torch.no_grad():
        out = model(ids, attention_mask=mask, use_cache=True)
    for row in range(3):
        _assert_row(out, row, mask, *_alone(model, ids[row][mask[row].bool()]))


@every_kind
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("counts", [(5, 3, 0), (1, 1, 0), (5, 5, 5)], ids=str)
@pytest.mark.parametrize("longer", [False, True])
def test_padding_of_tokens_that_follow_a_cache(kind, bias, counts, longer):
    _, model = pair(kind, torch.float64, use_bias=bias)
    first, then = tokens(3, 12), tokens(3, max(counts), seed=1)
    before, mask = _mask(LEFT, 12), _mask(counts, max(counts))
    with torch.no_grad():
        cache = returned_cache(model(first, attention_mask=before, use_cache=True))
        given = torch.cat([before, mask], 1) if longer else mask
        out = model(then, attention_mask=given, use_cache=True, **cached(cache))
    for row in range(3):
        seen = torch.cat([first[row][before[row].bool()], then[row][mask[row].bool()]])
        _assert_row(out, row, mask, *_alone(model, seen))


def test_padding_between_tokens_counts_for_nothing():
    _, model = pair(dtype=torch.float64, use_bias=True)
    ids = tokens(2, 9)
    mask = torch.tensor([[0, 1, 0, 1, 1, 0, 0, 1, 0], [1, 1, 1, 1, 0, 1, 1, 1, 1]])
    with torch.no_grad():
        out = model(ids, attention_mask=mask, use_cache=True)
    for row in range(2):
        _assert_row(out, row, mask, *_alone(model, ids[row][mask[row].bool()]))


@every_kind
def test_generate_writes_the_same_with_padding_as_without(kind):
    _, model = pair(kind, torch.float64, use_bias=True)
    ids, mask = tokens(3, 12), _mask(LEFT, 12)
    options = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    padded = model.generate(ids, attention_mask=mask, **options)
    for row, count in enumerate(LEFT):
        alone = model.generate(ids[row : row + 1, 12 - count :], **options)
        assert torch.equal(padded[row, 12:], alone[0, count:])


def test_without_biases_all_outputs_are_those_of_transformers():
    slow, fast = pair(dtype=torch.float64)
    ids, mask = tokens(3, 12), _mask(LEFT, 12)
    with torch.no_grad():
        actual, expected = (m(ids, attention_mask=mask, use_cache=False).logits for m in (fast, slow))
    assert_same(actual, expected, "logits, on padding too")


def test_what_stands_on_padding_is_never_read():
    _, model = pair(dtype=torch.float64, use_bias=True)
    mixer, x, mask = mixers(model)[0], torch.randn(3, 12, 32).double(), _mask(LEFT, 12)
    other = x.masked_fill(~mask.bool()[..., None], torch.nan)
    with torch.no_grad():
        assert torch.equal(mixer(x, attention_mask=mask), mixer(other, attention_mask=mask))


def test_gradients_are_those_without_padding():
    _, model = pair(dtype=torch.float64, use_bias=True)
    ids, mask = tokens(2, 12), _mask((12, 7), 12)
    grads = []
    for padded in (True, False):
        model.zero_grad()
        if padded:
            loss = model(ids, attention_mask=mask, use_cache=False).logits[mask.bool()].square().sum()
        else:
            rows = (ids[row, 12 - count :] for row, count in enumerate((12, 7)))
            loss = sum(model(row[None], use_cache=False).logits.square().sum() for row in rows)
        loss.backward()
        grads.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, alone in grads[1].items():
        assert_same(grads[0][name], alone, name)


def test_a_mask_that_does_not_fit_is_refused():
    _, model = pair()
    ids = tokens(3, 12)
    for mask in (torch.ones(3, 11), torch.ones(2, 12), torch.ones(3, 1, 12, 12)):
        with pytest.raises(ValueError, match=r"attention_mask must be \(3, 12\)"):
            model(ids, attention_mask=mask)


def test_a_cache_that_records_its_past_refuses_padding():
    _, model = pair()
    cache = DynamicCache(config=model.config)
    cache.activate_past_recording()
    with pytest.raises(ValueError, match="records its past takes no padding"), torch.no_grad():
        model(tokens(3, 12), attention_mask=_mask(LEFT, 12), use_cache=True, **cached(cache))


class TestWhatTransformersGetsWrong:
    """Where nonet's answers differ from Transformers' own; once one of these fails, that one is mended."""

    def test_several_tokens_that_follow_a_cache(self):
        model = make(dtype=torch.float64)
        ids = tokens()
        with torch.no_grad():
            whole = model(ids, use_cache=False).logits
            cache = returned_cache(model(ids[:, :12], use_cache=True))
            chunk = model(ids[:, 12:], **cached(cache)).logits
        with pytest.raises(AssertionError, match="error"):
            assert_same(chunk, whole[:, 12:])

    def test_padding_with_a_bias_in_front_of_the_convolution(self):
        model = make(dtype=torch.float64, use_bias=True)
        ids = tokens(2, 12)
        with torch.no_grad():
            padded = model(ids, attention_mask=_mask((12, 7), 12), use_cache=False).logits[1, 5:]
            alone = model(ids[1:, 5:], use_cache=False).logits[0]
        with pytest.raises(AssertionError, match="error"):
            assert_same(padded, alone)

    def test_states_behind_padding_on_the_right(self):
        model = make(dtype=torch.float64)
        ids = tokens(2, 12)
        with torch.no_grad():
            padded = returned_cache(model(ids, attention_mask=_mask((12, 7), 12, "right"), use_cache=True))
        _, alone = _alone(model, ids[1, :7])
        with pytest.raises(AssertionError, match="error"):
            assert_same(padded.get_recurrent_state(0)[1], alone.get_recurrent_state(0)[0])

    def test_a_mask_that_has_columns_for_earlier_tokens(self):
        model = make(dtype=torch.float64)
        ids, mask = tokens(3, 12), _mask(LEFT, 12)
        outs = []
        for given in (torch.cat([mask, torch.ones(3, 1)], 1), None):
            with torch.no_grad():
                cache = returned_cache(model(ids, attention_mask=mask, use_cache=True))
                outs.append(model(ids[:, :1], attention_mask=given, **cached(cache)).logits)
        with pytest.raises(AssertionError, match="error"):
            assert_same(*outs)
