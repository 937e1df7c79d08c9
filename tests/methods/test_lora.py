"""The operations of LoRA: against dense products, and what they keep, cast and refuse."""

import re

import pytest
import torch
from common import assert_same, normal

from nonet.lora import grouped_lora, lora_linear
from nonet.lora.factors import row_norms
from nonet.select import UnsupportedError
from nonet.testing import assert_within_budget, assert_within_rounding

IMPLS = ("torch", "reference")
T, IN, OUT, R = 12, 10, 14, 3
SCALE = 1.7


def arguments(dtype=torch.float32, shape=(2, T), trained=("x", "a", "b")):
    made = {
        "x": normal(*shape, IN, dtype=dtype),
        "weight": normal(OUT, IN, seed=1, dtype=dtype),
        "bias": normal(OUT, seed=2, dtype=dtype),
        "a": normal(R, IN, seed=3, dtype=dtype),
        "b": normal(OUT, R, seed=4, dtype=dtype),
    }
    return {name: value.requires_grad_(name in trained) for name, value in made.items()}


def group(dtype=torch.float32):
    return {
        "x": normal(4, T, IN, dtype=dtype),
        "a": normal(3, R, IN, seed=1, dtype=dtype),
        "b": normal(3, OUT, R, seed=2, dtype=dtype),
        "scales": torch.tensor([0.5, 1.7, 3.0]),
        "rows": torch.tensor([2, -1, 0, 2]),
        "base": normal(4, T, OUT, seed=3, dtype=dtype),
    }


def dense(x, weight, bias, a, b, scale=SCALE):
    """One product with the changed weight."""
    return x @ (weight + scale * b @ a).mT + bias


# The oracles against one dense product.


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(), (T,), (2, T), (2, 3, T), (0, T)], ids=str)
def test_equals_a_product_with_the_changed_weight(impl, shape):
    given = arguments(torch.float64, shape)
    out = lora_linear(**given, scale=SCALE, impl=impl)
    assert out.shape == (*shape, OUT)
    assert_same(out, dense(**given))


@pytest.mark.parametrize("impl", IMPLS)
def test_a_dropped_input_reaches_the_weight_alone(impl):
    given = arguments()
    keep = torch.ones(2, T, IN, dtype=torch.bool)
    keep[:, 3] = False
    out = lora_linear(**given, scale=SCALE, keep=keep, impl=impl)
    whole = lora_linear(**given, scale=SCALE, impl=impl)
    bare = torch.nn.functional.linear(*(given[n] for n in ("x", "weight", "bias")))
    assert torch.equal(out[:, 3], bare[:, 3])
    assert torch.equal(out[:, 4:], whole[:, 4:])


@pytest.mark.parametrize("impl", IMPLS)
def test_rows_of_a_group_equal_rows_alone(impl):
    def alone(g):
        rows = [
            b if k < 0 else b + s[k] * (x @ g["a"][k].mT @ g["b"][k].mT)
            for x, b, k, s in zip(g["x"], g["base"], g["rows"], [g["scales"]] * 4, strict=True)
        ]
        return torch.stack(rows)

    given = group(torch.float64)
    out = grouped_lora(**given, impl=impl)
    assert_same(out, alone(given))
    assert torch.equal(out[1], given["base"][1])  # a row of none, to the bit


@pytest.mark.parametrize("impl", IMPLS)
def test_a_group_is_rank_padded_with_zeros(impl):
    g = group(torch.float64)
    g["a"][0, 1:] = 0
    g["b"][0, :, 1:] = 0
    small = {**g, "a": g["a"][:1, :1], "b": g["b"][:1, :, :1], "scales": g["scales"][:1]}
    whole, alone = ({**x, "rows": torch.zeros(4, dtype=torch.long)} for x in (g, small))
    assert_same(grouped_lora(**whole, impl=impl), grouped_lora(**alone, impl="reference"))


# What is kept and formed.


def kept(function):
    """Tensors that autograd keeps for backward, each storage once."""
    seen = {}

    def pack(x):
        seen[x.untyped_storage().data_ptr()] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = function()
    return out, list(seen.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dropout", [False, True])
def test_only_the_input_the_mask_and_the_thin_product_are_kept(dtype, dropout):
    given = arguments(dtype)
    given["a"], given["b"] = (given[n].detach().float().requires_grad_() for n in "ab")
    keep = torch.rand(2, T, IN) < 0.5 if dropout else None
    _, tensors = kept(lambda: lora_linear(**given, scale=SCALE, keep=keep))
    beside = [t for t in tensors if t.shape[-2:] not in ((OUT, IN), (R, IN), (OUT, R))]
    sizes = sorted(t.untyped_storage().nbytes() for t in beside)
    expected = [2 * T * R * dtype.itemsize, 2 * T * IN * dtype.itemsize] + [2 * T * IN] * dropout
    assert sizes == sorted(expected)
    assert {t.dtype for t in beside} == {dtype, torch.bool} if dropout else {dtype}
    assert given["x"].data_ptr() in {t.data_ptr() for t in beside}  # itself, not a copy


def test_a_frozen_weight_gets_no_gradient_and_a_trained_one_does():
    for trained in (("a", "b"), ("x",), ("weight", "a"), ("bias", "b"), ("x", "weight", "bias", "a", "b")):
        given, plain = (arguments(torch.float64, trained=trained) for _ in range(2))
        lora_linear(**given, scale=SCALE).square().sum().backward()
        dense(**plain).square().sum().backward()
        for name in given:
            assert (given[name].grad is not None) == (name in trained)
            if name in trained:
                assert_same(given[name].grad, plain[name].grad, name)


def test_factors_in_float32_beside_half_precision_get_gradients_in_float32():
    given = arguments(torch.bfloat16)
    given["a"], given["b"] = (given[n].detach().float().requires_grad_() for n in "ab")
    out = lora_linear(**given, scale=SCALE)
    out.float().square().sum().backward()
    assert out.dtype == given["x"].grad.dtype == torch.bfloat16
    assert given["a"].grad.dtype == given["b"].grad.dtype == torch.float32


@pytest.mark.parametrize("slow", [(), (torch.bfloat16,)], ids=["of its own", "through float32"])
def test_products_of_half_precision_are_right_on_any_processor(slow, monkeypatch):
    monkeypatch.setattr("nonet.lora.impl.torch._SLOW", slow)
    given = arguments(torch.bfloat16, trained=("x", "weight", "bias", "a", "b"))

    def run(given, impl):
        out = lora_linear(**given, scale=SCALE, impl=impl)
        return [out, *torch.autograd.grad(out.square().sum(), list(given.values()))]

    wide = {name: value.detach().double().requires_grad_() for name, value in given.items()}
    found = run(given, "torch")
    assert {value.dtype for value in found} == {torch.bfloat16}
    assert_within_rounding(found, lambda: run(wide, "reference"))
    if slow:
        exact = lora_linear(**{n: v.detach().float() for n, v in given.items()}, scale=SCALE)
        assert torch.equal(found[0], exact.bfloat16())


def test_it_is_differentiated_once():
    given = arguments()
    loss = lora_linear(**given, scale=SCALE).square().sum()
    (grad,) = torch.autograd.grad(loss, given["a"], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_arguments_are_left_as_they_are_without_gradients():
    given = arguments(trained=())
    before = {n: v.clone() for n, v in given.items()}
    with torch.inference_mode():
        out = lora_linear(**given, scale=SCALE)
    assert torch.equal(out, lora_linear(**given, scale=SCALE))
    assert all(torch.equal(before[n], given[n]) for n in given)


# Under PyTorch's own modes.


def test_autocast_computes_in_its_dtype_and_gradients_come_back_in_theirs():
    def exact():
        given = arguments(torch.float64)
        out = dense(**given)
        out.square().sum().backward()
        return [out, *(given[n].grad for n in ("x", "a", "b"))]

    given = arguments()
    with torch.autocast("cpu", torch.bfloat16):
        out = lora_linear(**given, scale=SCALE)
    out.float().square().sum().backward()
    grads = [given[n].grad for n in ("x", "a", "b")]
    assert out.dtype == torch.bfloat16
    assert all(grad.dtype == torch.float32 for grad in grads)
    assert_within_rounding([out, *grads], exact, dtype=torch.bfloat16)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch.compile does so itself
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dropout", [False, True])
def test_it_compiles_to_one_graph(dropout):
    given = arguments(trained=("x", "weight", "bias", "a", "b"))
    keep = torch.rand(2, T, IN) < 0.5 if dropout else None

    def run(given):
        return lora_linear(**given, scale=SCALE, keep=keep)

    torch.compiler.reset()
    outs = [f(given) for f in (torch.compile(run, backend="aot_eager", fullgraph=True), run)]
    assert torch.equal(*outs)
    assert all(map(torch.equal, *(torch.autograd.grad(o.square().sum(), list(given.values())) for o in outs)))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_group_compiles_to_one_graph():
    torch.compiler.reset()
    run = torch.compile(lambda g: grouped_lora(**g), backend="aot_eager", fullgraph=True)
    assert torch.equal(run(group()), grouped_lora(**group()))


# DoRA's norms.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("near", [0.0, 0.9, 0.999], ids=["apart", "near", "nearly opposite"])
def test_norms_equal_those_of_the_dense_sum(dtype, near):
    """``near``: how much of the weight the change takes away, so that terms cancel."""
    a, b = normal(R, IN, seed=3), normal(OUT, R, seed=4)
    weight = normal(OUT, IN).to(dtype) if near == 0 else (-(b @ a) * SCALE / near).to(dtype)
    plain = torch.linalg.vector_norm(weight.float() + SCALE * b @ a, dim=1)
    gold = torch.linalg.vector_norm(weight.double() + SCALE * b.double() @ a.double(), dim=1)
    norms = row_norms(weight, a, b, SCALE)
    # What cancels is the square of the weight's norm, relative to what is left of it.
    lost = torch.linalg.vector_norm(weight.double(), dim=1).square() / gold
    assert_within_budget(norms.float(), plain, gold, "norms", scale=lost.max().item())


# What is refused.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight": normal(OUT)}, "weight must have the shape (out, in=10); got (14,)"),
        ({"a": normal(R, 9)}, "a must have the shape (R, in=10); got (3, 9)"),
        ({"b": normal(OUT, 4)}, "b must have the shape (out=14, R=3); got (14, 4)"),
        ({"bias": normal(9)}, "bias must have the shape (out=14); got (9,)"),
        ({"x": normal(2, T, 9)}, "weight must have the shape (out, in=9); got (14, 10)"),
        ({"keep": torch.ones(T, IN) > 0}, "keep must have the shape (2, 12, in=10); got (12, 10)"),
        ({"keep": torch.ones(2, T, IN)}, "keep must be of bool; got torch.float32"),
        (
            {"x": normal(2, T, IN).long()},
            "x must be of float64, float32, bfloat16 or float16; got torch.int64",
        ),
        ({"a": normal(R, IN).long()}, "a must be of float64, float32, bfloat16 or float16; got torch.int64"),
        (
            {"x": normal(2, T, IN).double()},
            "weight must be of the dtype of x, torch.float64; got torch.float32",
        ),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lora_linear(**{**arguments(), "scale": SCALE, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": normal(T, IN)}, "x must have the shape (B, T, in); got (12, 10)"),
        ({"a": normal(3, R, 9)}, "a must have the shape (K, R, in=10); got (3, 3, 9)"),
        ({"b": normal(2, OUT, R)}, "b must have the shape (K=3, out, R=3); got (2, 14, 3)"),
        ({"scales": normal(2)}, "scales must have the shape (K=3); got (2,)"),
        ({"rows": torch.tensor([0])}, "rows must have the shape (B=4); got (1,)"),
        ({"base": normal(4, T, 9)}, "base must have the shape (B=4, T=12, out=14); got (4, 12, 9)"),
        ({"a": normal(3, R, IN).double()}, "a must match x, which is torch.float32 on cpu"),
    ],
)
def test_wrong_arguments_of_a_group_are_named(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        grouped_lora(**{**group(), **change})


def test_a_row_of_an_adapter_that_is_not_there_is_refused():
    for impl in IMPLS:
        with pytest.raises(ValueError, match="rows must hold numbers from -1 to 2; got 3"):
            grouped_lora(**{**group(), "rows": torch.tensor([3, 0, 0, 0])}, impl=impl)


def test_an_unknown_implementation_is_refused():
    with pytest.raises(UnsupportedError, match="choose from auto, torch, reference"):
        lora_linear(**arguments(), scale=SCALE, impl="triton")
