"""What nonet computes in a Transformers model is what Transformers computes, and as exact."""

import pytest
import torch
from hf_models import KINDS, cached, mixers, pair, tokens

from nonet.ecosystem import returned_cache
from nonet.testing import assert_within_budget, assert_within_rounding

every_kind = pytest.mark.parametrize("kind", KINDS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
FIELDS = {
    "plain": {},
    "bias": {"use_bias": True},
    "no_conv_bias": {"use_conv_bias": False},
    "gelu": {"hidden_act": "gelu"},
    "swish": {"hidden_act": "swish"},
    "narrow_residual": {"residual_in_fp32": False},
    "one_tap": {"conv_kernel": 1},
    "wide": {"conv_kernel": 7, "time_step_rank": 5, "state_size": 16, "expand": 3},
}


def _budget(name, run, slow, fast):
    """Holds what the fast model computes to what the slow one does in float64."""
    found, dtype, wide = run(fast), slow.dtype, slow.double()
    assert all(value.abs().max() > 0 for value in found)
    assert_within_rounding(found, lambda: run(wide), name, dtype)


def _gradients(model, **inputs):
    model.zero_grad()
    out = model(use_cache=False, **inputs)
    out.loss.backward()
    return [out.logits.detach(), *(weight.grad for weight in model.parameters())]


@every_dtype
@every_kind
@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_logits(fields, kind, dtype):
    def run(model):
        with torch.no_grad():
            return [model(tokens(3, length), use_cache=False).logits for length in (1, 2, 41)]

    _budget("logits", run, *pair(kind, dtype, **fields))


@every_dtype
@every_kind
@pytest.mark.parametrize("fields", [FIELDS[name] for name in ("bias", "gelu", "wide")], ids=str)
def test_gradients(fields, kind, dtype):
    slow, fast = pair(kind, dtype, **fields)
    ids = tokens()
    for model in (slow, fast):
        model.train()
    _budget("training", lambda m: _gradients(m, input_ids=ids, labels=ids), slow, fast)


@every_kind
def test_gradients_in_evaluation_and_from_embeddings(kind):
    slow, fast = pair(kind)
    ids = tokens()
    embeds = slow.get_input_embeddings()(ids).detach()

    def run(model):
        given = embeds.detach().to(model.dtype).requires_grad_()
        logits = model(inputs_embeds=given, use_cache=False).logits
        logits.square().mean().backward()
        return [logits.detach(), given.grad]

    _budget("evaluation", run, slow, fast)


@every_kind
def test_gradient_checkpointing_changes_nothing(kind):
    _, model = pair(kind)
    ids = tokens()
    plain = _gradients(model.train(), input_ids=ids, labels=ids)
    model.activation_checkpointing_enable()
    again = _gradients(model, input_ids=ids, labels=ids)
    assert all(map(torch.equal, plain, again))


@every_kind
def test_autocast_is_respected(kind):
    slow, fast = pair(kind)
    ids = tokens()
    seen = []
    mixers(fast)[0].out_proj.register_forward_hook(lambda module, args, out: seen.append(out.dtype))

    def run(model):
        narrow = model.dtype == torch.float32
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            out = model(ids, use_cache=True)
            more = model(ids[:, :1], **cached(returned_cache(out)))
        return [torch.cat([out.logits, more.logits], 1).to(torch.bfloat16 if narrow else model.dtype)]

    _budget("under autocast", run, slow, fast)
    assert seen == [torch.bfloat16] * 2


def test_rows_and_memory_order_do_not_matter():
    _, model = pair(dtype=torch.float64)
    mixer = mixers(model)[0]
    x = torch.randn(12, 3, 32, dtype=torch.float64)
    with torch.no_grad():
        whole = mixer(x.transpose(0, 1))
        alone = torch.cat([mixer(x[:, i : i + 1].transpose(0, 1).contiguous()) for i in range(3)])
    assert_within_budget(whole.float(), alone.float(), alone, "rows alone")
