"""A cache changes the time and never the answer, whoever filled it."""

import pytest
import torch
from hf_models import KINDS, assert_same, assert_states, cached, make, mixers, pair, tokens
from torch import nn
from transformers import DynamicCache

import nonet
import nonet.hf.mamba as layer
from nonet.ecosystem import returned_cache
from nonet.testing import assert_within_rounding

every_kind = pytest.mark.parametrize("kind", KINDS)
FIELDS = {
    "plain": {},
    "bias": {"use_bias": True},
    "no_conv_bias": {"use_conv_bias": False},
    "gelu": {"hidden_act": "gelu"},
    "one_tap": {"conv_kernel": 1},
}
every_field = pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
WAYS = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "top_k": 20},
    "beam": {"do_sample": False, "num_beams": 3},
}


def _in_chunks(model, ids, sizes, cache=None):
    parts, at = [], 0
    with torch.no_grad():
        for size in sizes:
            out = model(ids[:, at : at + size], use_cache=True, **cached(cache))
            cache, at = returned_cache(out), at + size
            parts.append(out.logits)
    return torch.cat(parts, 1), cache


@pytest.fixture
def steps(monkeypatch):
    """The number of rows of each step that is taken."""
    taken = []

    def counted(x, *args, **options):
        taken.append(len(x))
        return nonet.mamba.mamba_step(x, *args, **options)

    monkeypatch.setattr(layer, "mamba_step", counted)
    return taken


@every_field
@every_kind
@pytest.mark.parametrize("sizes", [(23,), (1,) * 23, (2, 1, 5, 1, 1, 13), (12, 11)], ids=str)
def test_chunks_of_any_size_give_what_one_call_gives(sizes, kind, fields):
    slow, fast = pair(kind, torch.float64, **fields)
    ids = tokens()
    with torch.no_grad():
        whole = slow(ids, use_cache=True)
    logits, cache = _in_chunks(fast, ids, sizes)
    assert_same(logits, whole.logits, "logits")
    assert_states(cache, returned_cache(whole))


@every_kind
def test_a_cache_goes_from_one_path_to_the_other_and_back(kind):
    slow, fast = pair(kind, torch.float64, use_bias=True)
    ids = tokens()
    with torch.no_grad():
        whole = slow(ids, use_cache=False).logits
    for paths in ((slow, fast), (fast, slow)):
        cache, parts = None, []
        # Where Transformers' own path continues, it does so token by token, which it can.
        for model, start, end in (
            (paths[0], 0, 9),
            (paths[1], 9, 13),
            (paths[0], 13, 17),
            (paths[1], 17, 23),
        ):
            sizes = (1,) * (end - start) if start else (end,)
            logits, cache = _in_chunks(model, ids[:, start:end], sizes, cache)
            parts.append(logits)
        assert_same(torch.cat(parts, 1), whole, "logits")


def test_a_model_in_use_is_accelerated_and_restored_between_tokens():
    model = make(dtype=torch.float64)
    ids = tokens()
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
    first, cache = _in_chunks(model, ids[:, :8], (8,))
    second, cache = _in_chunks(nonet.accelerate(model), ids[:, 8:15], (3, 1, 3), cache)
    third, cache = _in_chunks(nonet.hf.restore(model), ids[:, 15:], (1,) * 8, cache)
    assert_same(torch.cat([first, second, third], 1), whole, "logits")


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rows", [2, layer.STEP_ROWS + 1])
def test_decoding_is_as_exact_as_transformers(kind, dtype, rows):
    slow, fast = pair(kind, dtype, use_bias=True)
    ids, sizes = tokens(rows), (15,) + (1,) * 8
    gets = ("get_conv_state", "get_recurrent_state")

    def run(model):
        logits, cache = _in_chunks(model, ids, sizes)
        return [logits, *(torch.stack([getattr(cache, get)(i) for i in range(2)]) for get in gets)]

    found = run(fast)
    assert [value.dtype for value in found] == [value.dtype for value in run(slow)]
    wide = slow.double()
    assert_within_rounding(found, lambda: run(wide), dtype=dtype)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@every_kind
def test_generate_writes_the_same_tokens(kind, way):
    outs = []
    for model in pair(kind, torch.float64, use_bias=True):
        torch.manual_seed(1)
        outs.append(model.generate(tokens(3), max_new_tokens=12, min_new_tokens=12, **way))
    assert outs[0].shape == (3, 35)
    assert torch.equal(outs[0], outs[1])


def test_one_token_takes_one_step_a_layer(steps):
    _, model = pair()
    model.generate(tokens(3), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert steps == [3] * 2 * 4


@pytest.mark.parametrize(
    "change",
    ["rows", "gelu", "gradient", "autocast", "hook", "wrapper", "own_forward", "recording", "padding"],
)
def test_what_a_step_cannot_serve_goes_the_general_way(change, steps):
    rows = layer.STEP_ROWS + 1 if change == "rows" else 2
    slow, model = pair(dtype=torch.float64, hidden_act="gelu" if change == "gelu" else "silu")
    ids = tokens(rows)
    _, cache = _in_chunks(model, ids, (22,))
    calls, mixer = [], mixers(model)[1]
    if change == "hook":
        mixer.x_proj.register_forward_pre_hook(lambda module, args: calls.append(1))
    elif change == "wrapper":
        mixer.in_proj = nn.Sequential(mixer.in_proj)
    elif change == "own_forward":
        inner = mixer.out_proj.forward
        mixer.out_proj.forward = lambda x: inner(x)
    elif change == "recording":
        cache.activate_past_recording()
    mask = torch.ones(rows, 23)
    mask[0, -1] = float(change != "padding")
    with (
        torch.set_grad_enabled(change == "gradient"),
        torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"),
    ):
        last = model(ids[:, 22:], **cached(cache), attention_mask=mask).logits
    whole = {"hook": 1, "wrapper": 1, "own_forward": 1}.get(change, 0)  # the other layer still steps
    assert steps == [rows] * whole
    assert len(calls) == (change == "hook")
    if change != "autocast":
        with torch.no_grad():
            assert_same(last[1:], slow(ids, use_cache=False).logits[1:, 22:], "logits")


def test_beams_are_reordered():
    _, model = pair(dtype=torch.float64)
    ids = tokens(3)
    _, cache = _in_chunks(model, ids[:, :20], (20,))
    order = torch.tensor([2, 0, 2])
    cache.reorder_cache(order)
    actual, _ = _in_chunks(model, ids[:, 20:], (1, 2), cache)
    with torch.no_grad():
        whole = model(torch.cat([ids[order, :20], ids[:, 20:]], 1), use_cache=False).logits
    assert_same(actual, whole[:, 20:], "logits")


def test_a_cache_that_was_reset_is_empty():
    _, model = pair(dtype=torch.float64)
    ids = tokens()
    whole, cache = _in_chunks(model, ids, (23,))
    cache.reset()
    again, cache = _in_chunks(model, ids, (1, 22), cache)
    assert_same(again, whole, "logits")


@pytest.mark.parametrize("first", [6, 2])
def test_a_cache_that_records_its_past_can_take_it_back(first):
    slow, fast = pair(dtype=torch.float64)
    ids = tokens()
    caches = []
    for model in (slow, fast):
        cache = DynamicCache(config=model.config)
        cache.activate_past_recording()
        _, cache = _in_chunks(model, ids[:, :8], (first,) + (1,) * (8 - first), cache)
        caches.append(cache)
    assert caches[0].get_conv_state(0).shape[-1] == 8
    assert_states(*caches)
    for cache in caches:
        cache.crop(-3)
    assert_same(caches[1].get_conv_state(0), caches[0].get_conv_state(0), "cropped state")


@every_kind
@pytest.mark.parametrize("impl", ["auto", "reference"])
@pytest.mark.parametrize("sizes", [(9, 14), (20, 1, 2)], ids=str)
def test_gradients_pass_through_the_cache(kind, impl, sizes):
    model = nonet.accelerate(make(kind, torch.float64), impl=impl)
    ids = tokens()
    grads = []
    for cuts in ((23,), sizes):
        model.zero_grad()
        cache, loss, at = None, 0.0, 0
        for size in cuts:
            out = model(ids[:, at : at + size], use_cache=True, **cached(cache))
            loss = loss + out.logits.square().sum()
            cache, at = returned_cache(out), at + size
        loss.backward()
        grads.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, whole in grads[0].items():
        assert_same(grads[1][name], whole, name)


def test_packed_rows_are_refused():
    mixer = mixers(pair()[1])[0]
    for name in ("cu_seqlens", "seq_idx"):
        with pytest.raises(TypeError, match=f"MambaMixer does not understand {name}"):
            mixer(torch.randn(1, 4, 32), **{name: torch.tensor([0, 2, 4])})
