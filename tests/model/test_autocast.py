"""Every layer and model under autocast: it computes, learns, and errs as its narrow products do."""

import pytest
import torch
from helpers import PATTERNS, TINY, make, tokens

from nonet.linformer import LinformerSelfAttention
from nonet.mamba import Mamba
from nonet.matmulfree import BitLinear
from nonet.model import NonetConfig, NonetForSequenceClassification
from nonet.registry import parts

every_dtype = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
LAYERS = {
    "bit linear": lambda: BitLinear(32, 32),
    "linformer": lambda: LinformerSelfAttention(32, heads=4, length=16, k=4),
    "linformer layerwise": lambda: LinformerSelfAttention(32, 4, length=16, k=4, sharing="layerwise"),
    "mamba": lambda: Mamba(32),
}
ENCODERS = [p.letter for p in parts("mixer") if p.bidirectional]


def assert_near(narrow, wide, dtype):
    """Within what rounding every product to the narrow dtype can do to a few layers."""
    error = (narrow.float() - wide.float()).norm() / wide.float().norm()
    assert error <= 16 * torch.finfo(dtype).eps


def learn(model, dtype, compute):
    with torch.autocast("cpu", dtype):
        out, loss = compute(model)
    loss.float().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients
    assert all(torch.isfinite(grad).all() for grad in gradients.values())
    assert {p.dtype for p in model.parameters()} == {grad.dtype for grad in gradients.values()}
    return out.detach()


@every_dtype
@pytest.mark.parametrize("make_layer", LAYERS.values(), ids=LAYERS)
def test_layers(make_layer, dtype):
    torch.manual_seed(0)
    layer, x = make_layer(), torch.randn(2, 16, 32)

    def compute(layer):
        out = layer(x)
        return out, out.float().square().mean()

    out = learn(layer, dtype, compute)
    assert out.dtype == dtype
    assert_near(out, layer(x).detach(), dtype)


@every_dtype
@pytest.mark.parametrize("linear", [p.name for p in parts("linear")])
@pytest.mark.parametrize("position", [p.name for p in parts("position")])
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_models(pattern, position, linear, dtype):
    model, ids = make(pattern, torch.float32, position=position, linear=linear), tokens(length=40)

    def compute(model):
        out = model(ids, labels=ids, use_cache=False)
        return out.logits, out.loss

    learn(model, dtype, compute)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        ways = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
        assert model.generate(ids, **ways).shape == (2, 43)


@every_dtype
def test_a_model_errs_as_its_products_do(dtype):
    model, ids = make("FM", torch.float32), tokens(length=40)
    with torch.no_grad():
        with torch.autocast("cpu", dtype):
            narrow = model(ids, use_cache=False).logits
        assert_near(narrow, model(ids, use_cache=False).logits, dtype)


@every_dtype
@pytest.mark.parametrize("letter", ENCODERS)
def test_encoders(letter, dtype):
    torch.manual_seed(0)
    config = NonetConfig(**TINY, pattern=letter, is_causal=False, num_labels=3)
    model, ids = NonetForSequenceClassification(config), tokens(length=40)

    def compute(model):
        out = model(ids, labels=torch.tensor([0, 2]))
        return out.logits, out.loss

    learn(model, dtype, compute)
