"""Adapters in single modules: first values, formulas against dense ones, dropout, the variants."""

import copy
import math

import pytest
import torch
from common import assert_same, normal
from lora_models import IN, KINDS, LINEAR, LOOK_UP, OUT, VOCAB, OneModule, inputs, one_module, train
from torch import nn

from nonet.lora import LoraConfig, add_lora, merge_lora, remove_lora, select_lora
from nonet.lora.factors import EXACT_SVD
from nonet.matmulfree import BitLinear
from nonet.testing import assert_within_rounding

VARIANTS = [(), ("rslora",), ("dora",), ("pissa",), ("dora", "pissa"), ("rslora", "dora", "pissa")]
every_variant = pytest.mark.parametrize("variants", VARIANTS, ids=lambda v: "+".join(v) or "lora")
every_kind = pytest.mark.parametrize("kind", KINDS)


def dense_output(kind, model, x):
    """The output by the papers' formulas, with the changed weight written out."""
    layer, factors = model.layer, model.layer.lora.default
    weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.mT
    change = factors.b @ factors.a
    if factors.start_a is not None:
        change = change + factors.start_b @ factors.start_a
    changed = weight + factors.scale * change
    if factors.magnitude is not None:
        norm = torch.linalg.vector_norm(changed, dim=1, keepdim=True).detach()
        changed = factors.magnitude[:, None] * changed / norm
    if kind in LOOK_UP:
        times = float(getattr(layer, "embed_scale", 1.0))
        return torch.nn.functional.embedding(x, changed.mT) * times
    return torch.nn.functional.linear(x, changed, layer.bias)


@every_kind
@every_variant
def test_it_starts_as_the_bare_module(kind, variants):
    model = one_module(kind, torch.float64, variants=variants)
    x = inputs(kind, torch.float64)
    with torch.no_grad():
        bare, out = OneModule(KINDS[kind], torch.float64)(x), model(x)
    if not {"dora", "pissa"} & set(variants):
        assert torch.equal(out, bare)
    assert_same(out, bare)


@every_kind
@every_variant
def test_outputs_and_gradients_are_those_of_the_changed_weight(kind, variants):
    def run(function):
        model = one_module(kind, torch.float64, variants=variants, trained=True)
        x = inputs(kind, torch.float64)
        if kind in LINEAR:
            x.requires_grad_()
        out = function(model, x)
        (out * normal(*out.shape, seed=2)).sum().backward()
        trained = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        assert set(trained) >= {"inner.layer.lora.default.a", "inner.layer.lora.default.b"}
        return {"out": out.detach(), **({"x": x.grad} if kind in LINEAR else {}), **trained}

    found, dense = run(lambda model, x: model(x)), run(lambda model, x: dense_output(kind, model, x))
    for name in found:
        if kind == "Embedding" and name.endswith("a"):  # the padding's column learns nothing
            assert found[name][:, 3].count_nonzero() == 0
            dense[name][:, 3] = 0
        assert_same(found[name], dense[name], name)


@every_kind
@pytest.mark.parametrize("variants", [(), ("dora",)], ids=str)
def test_half_precision_weights_have_factors_in_float32(kind, variants):
    model = one_module(kind, torch.bfloat16, variants=variants, trained=True)
    x = inputs(kind, torch.bfloat16)
    out = model(x)
    out.float().square().sum().backward()
    assert out.dtype == torch.bfloat16
    wide, exact = copy.deepcopy(model).double(), x if kind in LOOK_UP else x.double()
    assert_within_rounding(out, lambda: dense_output(kind, wide, exact))
    for name, p in model.named_parameters():
        if ".lora." in name:
            assert p.dtype == p.grad.dtype == torch.float32
        else:
            assert p.dtype == torch.bfloat16
            assert p.grad is None


@every_kind
@pytest.mark.parametrize("which", [(), ("dora",), "rows"], ids=str)
def test_autocast_computes_in_its_dtype(kind, which):
    model = one_module(kind, variants=() if which == "rows" else which, trained=True)
    x, options = inputs(kind), {"device_type": "cpu", "dtype": torch.bfloat16}
    wide, exact = copy.deepcopy(model).double(), x if kind in LOOK_UP else x.double()
    with torch.autocast(**options):
        if which == "rows":
            select_lora(model, ["default", "default"])
        out = model(x)
    assert out.dtype == (torch.float32 if kind in LOOK_UP else torch.bfloat16)
    assert_within_rounding(out, lambda: dense_output(kind, wide, exact), dtype=torch.bfloat16)
    out.float().square().sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_first_values_do_not_depend_on_the_dtype(dtype):
    a = one_module("Linear", dtype).layer.lora.default.a
    assert a.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.equal(a.float(), one_module("Linear").layer.lora.default.a)


# First values.


def two(seed=0, order=("first", "second"), **options):
    model = nn.ModuleDict({name: nn.Linear(IN, OUT) for name in ("first", "second")})
    return add_lora(model, LoraConfig(targets=order, seed=seed, **options))


def test_first_values_come_from_the_seed_and_the_path_alone():
    torch.manual_seed(1)
    one = two()
    torch.manual_seed(2)
    other = two(order=("second", "first"))
    for name in ("first", "second"):
        assert torch.equal(one[name].lora.default.a, other[name].lora.default.a)
    assert not torch.equal(one["first"].lora.default.a, one["second"].lora.default.a)
    assert not torch.equal(one["first"].lora.default.a, two(seed=1)["first"].lora.default.a)


@every_variant
def test_the_global_generator_is_neither_read_nor_moved(variants):
    wide = nn.ModuleDict({"wide": nn.Linear(EXACT_SVD + 9, EXACT_SVD + 5), "ids": nn.Embedding(VOCAB, OUT)})
    before = torch.get_rng_state()
    add_lora(wide, LoraConfig(targets=("wide", "ids"), rank=2, variants=variants))
    assert torch.equal(torch.get_rng_state(), before)


def test_first_values_are_those_of_the_authors_code():
    factors = one_module("Linear", rank=8).layer.lora.default
    bound = 1 / math.sqrt(IN)
    assert factors.a.shape == (8, IN)
    assert bound / 2 < factors.a.abs().max() <= bound
    assert factors.b.shape == (OUT, 8)
    assert factors.b.count_nonzero() == 0
    factors = one_module("Embedding", rank=8).layer.lora.default
    assert factors.a.shape == (8, VOCAB)
    assert factors.a.count_nonzero() == 0
    assert factors.b.shape == (OUT, 8)
    assert factors.b.abs().max() > 1  # normal


@pytest.mark.parametrize(("variants", "scale"), [((), 5 / 3), (("rslora",), 5 / math.sqrt(3))])
def test_the_scale_is_alpha_over_the_rank_or_over_its_root(variants, scale):
    assert one_module("Linear", variants=variants).layer.lora.default.scale == scale


# PiSSA.


@pytest.mark.parametrize("width", [IN, EXACT_SVD + 44], ids=["exact", "by iteration"])
def test_pissa_starts_from_the_largest_singular_directions(width):
    model = nn.ModuleDict({"layer": nn.Linear(width, width + 6, bias=False)})
    with torch.no_grad():  # singular values fall off as those of trained weights do
        u, _, vh = torch.linalg.svd(model["layer"].weight, full_matrices=False)
        values = 1 / torch.arange(1, width + 1)
        model["layer"].weight.copy_(u * values @ vh)
    add_lora(model, LoraConfig(rank=4, targets=("layer",), variants=("pissa",)))
    factors = model["layer"].lora.default
    product = factors.scale * factors.b @ factors.a
    rest = torch.linalg.matrix_norm(model["layer"].weight - product)
    assert rest <= values[4:].square().sum().sqrt() * 1.001  # Eckart and Young: no product comes nearer
    assert torch.linalg.matrix_rank(product) == 4


def test_pissa_descends_further_in_a_first_step():
    """Its gradients are large where the weight is; with B = 0 that of A is zero."""
    losses = {}
    x, y = normal(64, IN, seed=3), normal(64, OUT, seed=4)
    for variants in ((), ("pissa",)):
        model = one_module("Linear", variants=variants, rank=4)

        def loss(model=model):
            return (model(x) - y).square().mean()

        first = loss()
        first.backward()
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p -= 0.003 * p.grad
        losses[variants] = (first.item(), loss().item())
    assert losses[()][1] < losses[()][0]
    assert losses[("pissa",)][1] < losses[()][1]


# Dropout.


@pytest.mark.parametrize("kind", LINEAR)
@pytest.mark.parametrize("variants", [(), ("dora",)], ids=["lora", "dora"])
def test_dropout_is_that_of_the_papers_code(kind, variants):
    """The weight's own output sees every input; DoRA's change of it sees what is kept."""
    p = 0.4

    def expected(model, x, keep):
        layer, factors = model.layer, model.layer.lora.default
        weight = layer.weight if isinstance(layer, nn.Linear) else layer.weight.mT
        change, dropped = factors.scale * factors.b @ factors.a, x * keep / (1 - p)
        gain = 1.0
        if factors.magnitude is not None:
            gain = (factors.magnitude / torch.linalg.vector_norm(weight + change, dim=1))[:, None]
        bare = torch.nn.functional.linear(x, weight, layer.bias)
        return bare + dropped @ (gain * (weight + change) - weight).mT

    model = one_module(kind, torch.float64, variants=variants, dropout=p, trained=True).train()
    x = inputs(kind, torch.float64)
    torch.manual_seed(5)
    out = model(x)
    torch.manual_seed(5)
    assert_same(out, expected(model, x, torch.rand(x.shape) >= p))


def test_dropout_keeps_the_rate_follows_the_generator_and_ends_in_evaluation():
    model = one_module("Linear", dropout=0.3, trained=True).train()
    factors = model.layer.lora.default
    kept = factors.mask(torch.empty(400, 100)).sum().item()
    assert abs(kept - 28000) < 5 * math.sqrt(40000 * 0.3 * 0.7)
    x, outs = inputs("Linear"), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outs.append(model(x))
    assert torch.equal(outs[0], outs[1])
    assert not torch.equal(outs[0], outs[2])
    model.eval()
    assert torch.equal(model(x), model(x))
    assert factors.mask(x) is None


def test_an_adapter_begins_in_its_modules_mode():
    for training in (False, True):
        model = OneModule(KINDS["Linear"]).train(training)
        add_lora(model, LoraConfig(targets=("layer",), dropout=0.5))
        assert model.layer.lora.default.training is training


# Modules that do more than to multiply.


def test_a_ternary_layer_carries_an_adapter():
    torch.manual_seed(0)
    model = nn.ModuleDict({"layer": BitLinear(IN, OUT, bias=True)}).double()
    bare = copy.deepcopy(model["layer"])
    add_lora(model, LoraConfig(rank=2, targets=("layer",)))
    train(model, size=0.3)
    layer = model["layer"]
    assert isinstance(layer, BitLinear)
    x = normal(3, IN).double()
    out, factors = layer(x), layer.lora.default
    assert_same(out, bare(x) + factors.scale * (x @ factors.a.mT @ factors.b.mT))
    out.square().sum().backward()
    assert factors.a.grad.abs().max() > 0
    assert factors.b.grad.abs().max() > 0
    assert layer.weight.grad is layer.norm_weight.grad is None


def test_a_ternary_layer_drops_inputs_of_its_adapter_only():
    torch.manual_seed(0)
    model, x = nn.ModuleDict({"layer": BitLinear(IN, OUT)}).double(), normal(3, IN).double()
    base = model["layer"](x)
    train(add_lora(model, LoraConfig(rank=2, targets=("layer",), dropout=0.4)).train())
    torch.manual_seed(5)
    out, factors = model["layer"](x), model["layer"].lora.default
    torch.manual_seed(5)
    keep = torch.rand(x.shape) >= 0.4
    assert_same(out, base + factors.scale * (x * keep / 0.6) @ (factors.b @ factors.a).mT)


def test_what_a_ternary_layer_cannot_do_is_refused():
    model = nn.ModuleDict({"layer": BitLinear(IN, OUT)})
    with pytest.raises(ValueError, match="dora needs the norms of a plain weight; layer is a BitLinear"):
        add_lora(model, LoraConfig(targets=("layer",), variants=("dora",)))
    assert not hasattr(model, "nonet_lora")
    add_lora(model, LoraConfig(targets=("layer",)))
    with pytest.raises(ValueError, match="cannot be merged into layer: BitLinear does more than to multiply"):
        merge_lora(model)


class _Position(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids + 2)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: nn.LayerNorm(4), "LayerNorm can carry no adapter; nn.Linear, Conv1D and nn.Embedding can"),
        (lambda: _Position(VOCAB, OUT), "_Position can carry no adapter"),
        (lambda: nn.Embedding(VOCAB, OUT, max_norm=1.0), "layer rescales its own weight"),
    ],
)
def test_modules_that_can_carry_none_are_refused(layer, message):
    model = nn.ModuleDict({"layer": layer()})
    with pytest.raises(ValueError, match=message):
        add_lora(model, LoraConfig(targets=("layer",)))


def test_a_rank_beyond_the_singular_directions_is_refused():
    model = nn.ModuleDict({"one": nn.Linear(IN, IN), "layer": nn.Linear(IN, OUT)})
    with pytest.raises(ValueError, match="rank=11 of layer must be at most 10 with pissa"):
        add_lora(model, LoraConfig(rank=11, targets=("one", "layer"), variants=("pissa",)))
    assert type(model["one"]) is nn.Linear


def test_removing_gives_back_the_class():
    for kind, layer in KINDS.items():
        model = one_module(kind)
        assert type(model.layer).__name__.startswith("Lora")
        assert isinstance(model.layer, type(layer()))
        remove_lora(model)
        assert type(model.layer) is type(layer())
        assert not hasattr(model.layer, "lora")
