"""Weights at the edge of what a variant is made for: rows of zeros, low rank, huge numbers, NaN."""

import copy

import pytest
import torch
from common import normal
from lora_models import IN, KINDS, LINEAR, OUT, OneModule, inputs, train
from torch import nn

from nonet.lora import LoraConfig, add_lora, merge_lora, unmerge_lora
from nonet.lora.factors import EXACT_SVD
from nonet.testing import assert_within_budget

ROW = 2
every_kind = pytest.mark.parametrize("kind", KINDS)
every_linear = pytest.mark.parametrize("kind", LINEAR)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)


def matrix(layer):
    """The weight as ``(out, in)``."""
    return layer.weight if isinstance(layer, nn.Linear) else layer.weight.mT


def with_row(kind, value, dtype=torch.float32):
    model = OneModule(KINDS[kind], dtype)
    with torch.no_grad():
        matrix(model.layer)[ROW] = value
    return model


def adapted(model, **options):
    return add_lora(model, LoraConfig(**{"rank": 3, "targets": ["layer"], **options}))


# DoRA where a row has no direction.


@every_kind
@every_dtype
@pytest.mark.parametrize("variants", [("dora",), ("dora", "pissa")], ids="+".join)
def test_a_row_of_zeros_starts_as_in_the_plain_layer(kind, dtype, variants):
    model, x = with_row(kind, 0.0, dtype), inputs(kind, dtype)
    bare, gold = model(x).detach(), copy.deepcopy(model).double()
    gold = gold(x.double() if x.is_floating_point() else x).detach()
    adapted(model, variants=variants)
    out = model(x)
    assert_within_budget(out, bare, gold, "start", scale=gold.abs().max().item())
    out.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    merge_lora(model)
    assert_within_budget(model(x), bare, gold, "merged", scale=gold.abs().max().item())
    assert matrix(model.layer)[ROW].count_nonzero() == 0
    unmerge_lora(model)


@every_linear
def test_a_row_of_zeros_learns(kind):
    """At first B does, since the gain is one; from then on the row has a direction, and m does."""
    model, x = adapted(with_row(kind, 0.0), variants=("dora",)), inputs(kind)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    target, losses = normal(2, 7, OUT, seed=9), []
    for _ in range(40):
        loss = (model(x) - target)[..., ROW].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    factors = model.layer.lora.default
    assert factors.magnitude[ROW] != 0
    assert factors.b[ROW].count_nonzero() == 3


@every_kind
def test_the_formula_is_the_papers_as_soon_as_there_is_a_norm(kind):
    model, x = train(adapted(with_row(kind, 0.0), variants=("dora",)), size=0.3), inputs(kind)
    layer, factors = model.layer, model.layer.lora.default

    def dense(dtype):
        changed = matrix(layer).to(dtype) + factors.scale * factors.b.to(dtype) @ factors.a.to(dtype)
        changed = factors.magnitude.to(dtype)[:, None] * changed / changed.norm(dim=1, keepdim=True)
        if kind in LINEAR:
            bias = None if layer.bias is None else layer.bias.to(dtype)
            return nn.functional.linear(x.to(dtype), changed, bias)
        return nn.functional.embedding(x, changed.mT) * float(getattr(layer, "embed_scale", 1.0))

    plain, gold = dense(torch.float32), dense(torch.float64)
    assert_within_budget(model(x), plain, gold, "out", scale=gold.abs().max().item())
    merge_lora(model)
    assert_within_budget(model(x), plain, gold, "merged", scale=gold.abs().max().item())


@every_linear
@pytest.mark.parametrize("variants", [(), ("dora",)], ids=["lora", "dora"])
def test_a_weight_that_is_no_number_spoils_its_own_row_alone(kind, variants):
    model, x = train(adapted(with_row(kind, torch.nan), variants=variants), size=0.3), inputs(kind)
    sound = train(adapted(with_row(kind, 0.5), variants=variants), size=0.3)
    out, others = model(x), torch.arange(OUT) != ROW
    assert out[..., ROW].isnan().all()
    assert torch.equal(out[..., others], sound(x)[..., others])


@every_linear
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_norms_beyond_half_precision_are_finite(kind, dtype):
    """Squares of these weights, and in float16 the norm itself, are beyond the largest number."""
    model = with_row(kind, 30_000.0, dtype)
    x = inputs(kind, dtype) / 1000
    bare, gold = model(x).detach(), copy.deepcopy(model).double()(x.double()).detach()
    adapted(model, variants=("dora",))
    assert model.layer.lora.default.magnitude[ROW] > torch.finfo(torch.float16).max
    assert_within_budget(model(x), bare, gold, "start", scale=gold.abs().max().item())
    merge_lora(model)
    assert torch.equal(matrix(model.layer)[ROW], torch.full((IN,), 30_000.0, dtype=dtype))


# PiSSA where there is no singular value.


@pytest.mark.parametrize("width", [IN, EXACT_SVD + 20], ids=["exact", "by iteration"])
@pytest.mark.parametrize("known", [0, 2])
def test_directions_without_a_singular_value_start_as_plain_loras(width, known):
    model = nn.ModuleDict({"layer": nn.Linear(width, width + 4, bias=False)})
    with torch.no_grad():
        model["layer"].weight.copy_(normal(width + 4, known, seed=1) @ normal(known, width, seed=2))
    weight = model["layer"].weight.clone()
    adapted(model, rank=4, variants=("pissa",))
    factors = model["layer"].lora.default
    live = factors.b.abs().amax(0) > 0
    assert live.tolist() == [True] * known + [False] * (4 - known)
    assert (factors.a[~live].abs() <= width**-0.5).all()
    assert (factors.a[~live].abs().amax(1) > width**-0.5 / 2).all()
    product = factors.scale * factors.b @ factors.a
    gold = weight.double()
    assert_within_budget(product, weight, gold, "product", scale=8 * max(1.0, gold.abs().max().item()))
    (model["layer"](normal(3, width)) - 1).square().sum().backward()
    assert (factors.b.grad.abs().amax(0) > 0).all()


@every_kind
def test_an_svd_of_no_numbers_is_refused_by_name(kind):
    model = with_row(kind, torch.inf)
    with pytest.raises(ValueError, match=r"pissa starts from an SVD, and the weight of inner\.layer holds"):
        adapted(model, variants=("pissa",))
    assert type(model.layer) is type(KINDS[kind]())
    assert not hasattr(model, "nonet_lora")


@every_kind
@pytest.mark.parametrize("variants", [(), ("rslora",), ("dora",)], ids=str)
def test_a_rank_larger_than_the_matrix_serves(kind, variants):
    model, x = OneModule(KINDS[kind]), inputs(kind)
    bare = model(x).detach()
    train(adapted(model, rank=3 * max(IN, OUT), variants=variants), size=0.1)
    out = model(x)
    assert out.isfinite().all()
    assert not torch.equal(out, bare)
    merge_lora(model)
    gold = copy.deepcopy(model).double()(x.double() if x.is_floating_point() else x)
    assert_within_budget(model(x), out, gold, "merged", scale=8 * gold.abs().max().item())
