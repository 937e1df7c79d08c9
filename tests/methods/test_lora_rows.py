"""Batches whose rows use different adapters, and what torch.compile makes of modules with adapters."""

import pytest
import torch
from common import assert_same, normal
from lora_models import (
    IN,
    KINDS,
    OUT,
    OneModule,
    exact,
    inputs,
    logits,
    one_module,
    several,
    tokens,
    train,
)

from nonet.lora import LoraConfig, add_lora, select_lora
from nonet.testing import assert_within_rounding

every_kind = pytest.mark.parametrize("kind", KINDS)


# In one module.


@every_kind
@pytest.mark.parametrize("training", [False, True])
def test_rows_with_adapters_of_their_own_equal_rows_alone(kind, training):
    names = ("one", None, "two", "one")

    x = inputs(kind, torch.float64)
    x = torch.cat([x, x.flip(0)])
    model = one_module(kind, torch.float64, "one", trained=True)
    add_lora(model, LoraConfig(rank=5, targets=("layer",), variants=("rslora", "pissa")), "two")
    train(model, size=0.3).train(training)
    alone = []
    for row, name in zip(x, names, strict=True):
        select_lora(model, name)
        alone.append(model(row[None]))
    select_lora(model, names)
    out = model(x)
    assert_same(out, torch.cat(alone))
    with torch.no_grad():
        assert_same(model(x), out, "without gradients")
    out.square().sum().backward()
    for name in ("one", "two"):
        if kind == "Embedding":  # the padding's column learns nothing
            assert (x == 3).any(dim=1).all()
            assert model.layer.lora[name].a.grad[:, 3].count_nonzero() == 0
        assert model.layer.lora[name].a.grad.abs().max() > 0
        assert model.layer.lora[name].b.grad.abs().max() > 0


def through_data(model):
    """Writes that PyTorch does not count, as those of moving averages and of some optimisers."""
    for n, p in enumerate(model.parameters()):
        p.data.mul_(1.5).add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(n)))


def by_replacing(model):
    for p in model.parameters():
        p.data = p.data + 0.5


WRITES = {"in place": lambda model: train(model, size=0.3), "data": through_data, "new data": by_replacing}


@every_kind
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
def test_factors_are_read_at_every_call(kind, write, guard):
    model, names = one_module(kind, torch.float64, "one", trained=True), ("one", "two")
    add_lora(model, LoraConfig(targets=("layer",)), "two")
    select_lora(model, names)
    x = inputs(kind, torch.float64)
    with guard():
        before = model(x)
        assert torch.equal(model(x), before)
    write(model)
    with guard():
        after = model(x)
        assert not torch.equal(after, before)
        for row, name in enumerate(names):
            select_lora(model, name)
            assert_same(after[row : row + 1], model(x[row : row + 1]), name)


@every_kind
def test_rows_can_be_trained_after_a_pass_in_inference_mode(kind):
    model, x = one_module(kind, torch.float32, "one", trained=True), inputs(kind)
    select_lora(model, ["one", None])
    with torch.inference_mode():
        expected = model(x)
    out = model(x)
    assert torch.equal(out, expected)
    out.square().sum().backward()
    assert model.layer.lora["one"].a.grad.abs().max() > 0


@every_kind
def test_a_pass_leaves_nothing_in_a_module(kind):
    model = one_module(kind, torch.float32, "one", trained=True)
    select_lora(model, ["one", None])
    before = dict(vars(model.layer.lora))
    with torch.no_grad():
        model(inputs(kind))
    assert vars(model.layer.lora) == before


@every_kind
def test_a_broken_adapter_harms_no_other_row(kind):
    model, x = one_module(kind, torch.float32, "broken", trained=True), inputs(kind)
    add_lora(model, LoraConfig(targets=("layer",)), "sound")
    train(model, size=0.3)
    select_lora(model, ["broken", "sound"])
    with torch.no_grad():
        expected = model(x)
        model.layer.lora["broken"].b.fill_(float("nan"))
        out = model(x)
        assert out[0].isnan().all()
        assert torch.equal(out[1], expected[1])
        select_lora(model, ["broken", None])
        assert torch.equal(model(x)[1], OneModule(KINDS[kind])(x)[1])


def test_dropout_of_rows_is_each_adapters_own():
    model = one_module("Linear", torch.float64, "none", trained=True)
    add_lora(model, LoraConfig(targets=("layer",), dropout=0.5), "some")
    train(model, size=0.3)
    select_lora(model, ["none", "some"])
    model.train()
    x = inputs("Linear", torch.float64)
    bare = OneModule(KINDS["Linear"], torch.float64)(x)
    torch.manual_seed(5)
    out = model(x)
    torch.manual_seed(5)
    rates = torch.tensor([0.0, 0.5])[:, None, None]
    keep = (torch.rand_like(x) >= rates) / (1 - rates)
    for row, factors in enumerate((model.layer.lora["none"], model.layer.lora["some"])):
        assert_same(out[row], bare[row] + factors.scale * (x * keep)[row] @ (factors.b @ factors.a).mT)


def test_inputs_of_more_axes_and_of_one_row_each_serve():
    model = one_module("Linear", name="one", trained=True)
    select_lora(model, ["one", None])
    x = normal(2, 3, 4, IN)
    out = model(x)
    assert out.shape == (2, 3, 4, OUT)
    with torch.no_grad():
        flat = model(x[:, 0, 0])
        assert torch.equal(flat[1], OneModule(KINDS["Linear"])(x[:, 0, 0])[1])
    with pytest.raises(ValueError, match="select_lora named 2 rows; a module was given 3"):
        model(normal(3, 4, IN))


# In a model.


def test_a_mixed_batch_equals_its_rows():
    names, ids = ("two", None, "one", "three", "two"), tokens(5)

    def alone(model):
        rows = []
        for row, name in zip(ids, names, strict=True):
            select_lora(model, name)
            rows.append(logits(model, row[None]))
        return torch.cat(rows)

    model = several()
    wide = exact(model)
    select_lora(model, names)
    assert_within_rounding(logits(model, ids), lambda: alone(wide), "logits")


def test_a_mixed_batch_learns_as_its_rows_do():
    names, ids = ("two", "one"), tokens(2)

    def grads(model, mixed):
        for batch, which in ((ids, names),) if mixed else zip(ids.split(1), names, strict=True):
            select_lora(model, which)
            (model(batch).logits.square().sum()).backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    # In double precision: keys have gradients of terms that cancel, so that single precision tells little.
    found, alone = grads(several().double(), True), grads(several().double(), False)
    assert set(found) == set(alone)
    for name in found:
        error = (found[name] - alone[name]).abs().max()
        assert error <= 1e-12 * alone[name].abs().max(), name


def test_a_mixed_batch_generates_as_its_rows_do():
    model, ids = several().double(), tokens(3)
    names = ("one", None, "two")
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with select_lora(model, names):
        mixed = model.generate(ids, **options)
    for row, name in enumerate(names):
        with select_lora(model, name):
            assert torch.equal(model.generate(ids[row : row + 1], **options)[0], mixed[row])
    assert len({tuple(row[11:].tolist()) for row in mixed}) == 3


def test_another_number_of_rows_is_refused():
    model = several()
    select_lora(model, ["one", "two", None])
    with pytest.raises(ValueError, match="select_lora named 3 rows; a module was given 2"):
        logits(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variants": ("dora",)}, "adapter 'other' is DoRA, which cannot be chosen row by row"),
        ({"bias": "all"}, "adapter 'other' trains biases or modules in full"),
        ({"full": ("lm_head",)}, "adapter 'other' trains biases or modules in full"),
    ],
)
def test_adapters_that_cannot_be_mixed_are_refused(options, message):
    model = add_lora(several(), LoraConfig(rank=2, **options), "other")
    with pytest.raises(ValueError, match=message):
        select_lora(model, ["one", "other"])
    select_lora(model, "other")


# Compiled.


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch.compile does so itself
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["Linear", "Conv1D", "Embedding"])
@pytest.mark.parametrize("which", ["default", "other", ("default", None)], ids=["lora", "dora", "rows"])
def test_it_compiles_to_one_graph(kind, which):
    model = one_module(kind, torch.float64, trained=True)
    train(add_lora(model, LoraConfig(rank=2, targets=("layer",), variants=("dora", "pissa")), "other"))
    select_lora(model, which)
    torch.compiler.reset()
    found = []
    for run in (torch.compile(model, backend="aot_eager", fullgraph=True), model):
        model.zero_grad()
        out = run(inputs(kind, torch.float64))
        out.square().sum().backward()
        with torch.no_grad():
            after = run(inputs(kind, torch.float64))
        found.append([out, after, *(p.grad for p in model.parameters() if p.requires_grad)])
    for compiled, eager in zip(*found, strict=True):
        assert_same(compiled, eager)
