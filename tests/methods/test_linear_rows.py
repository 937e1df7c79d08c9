"""The product with a few rows: sizes and layouts, the same bits alone and among others, messages."""

import pytest
import torch
from common import normal
from torch.nn.functional import linear

from nonet import native
from nonet.operators import learns
from nonet.tandem import linear_rows
from nonet.testing import assert_within_rounding

here = pytest.mark.skipif(native.absence() is not None, reason="there is no C library")
FLOATS = (torch.float32, torch.bfloat16)
SIZES = [(1, 1), (3, 2), (16, 17), (37, 5), (64, 33), (131, 40), (160, 1)]  # inputs, outputs


@pytest.fixture(params=native.ISAS)
def isa(request):
    library = native.library()
    if request.param not in library.isas():
        pytest.skip(f"this processor has no {request.param}")
    before = library.isa
    library.use_isa(request.param)
    yield
    library.use_isa(before)


def assert_right(found, x, weight, bias, name):
    x, weight = x.double(), weight.double()
    assert_within_rounding(found, lambda: linear(x, weight, None if bias is None else bias.double()), name)


@here
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("stored", FLOATS)
def test_a_row_is_the_same_alone_and_among_others(inputs, outputs, dtype, stored):
    x = normal(17, inputs, dtype=dtype)
    weight, bias = normal(outputs, inputs, seed=1, dtype=stored), normal(outputs, seed=2, dtype=stored)
    each = torch.cat([linear_rows(row, weight, bias, impl="cpu") for row in x.split(1)])
    assert each.dtype == dtype
    assert_right(each, x, weight, bias, f"{inputs} to {outputs}")
    for rows in range(2, 18):
        for start in {0, 17 - rows}:
            found = linear_rows(x[start : start + rows], weight, bias, impl="cpu")
            assert torch.equal(found, each[start : start + rows]), f"{rows} rows"


@here
@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("rows", [1, 5, 9])
def test_a_weight_that_is_exact_in_bfloat16_gives_the_same_bits_from_it(rows):
    x, weight = normal(rows, 67), normal(30, 67, seed=1, dtype=torch.bfloat16)
    found = linear_rows(x, weight, impl="cpu")
    assert torch.equal(found, linear_rows(x, weight.float(), impl="cpu"))
    finer = normal(30, 67, seed=1)
    assert not torch.equal(found, linear_rows(x, finer, impl="cpu"))


@here
@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("outputs", [64, 97])
def test_threads_share_the_outputs(threads, outputs):
    x, weight, bias = normal(4, 700), normal(outputs, 700, seed=1), normal(outputs, seed=2)
    before = torch.get_num_threads()
    alone = linear_rows(x, weight, bias, impl="cpu")
    try:
        torch.set_num_threads(threads)
        assert torch.equal(linear_rows(x, weight, bias, impl="cpu"), alone)
    finally:
        torch.set_num_threads(before)
    assert_right(alone, x, weight, bias, "shared")


IMPLS = [pytest.param("cpu", marks=here), "torch", "reference"]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("shape", [(24,), (1, 24), (2, 3, 24), (0, 24), (2, 0, 24)])
def test_rows_may_have_any_number_of_axes(impl, shape):
    x, weight = normal(*shape), normal(7, 24, seed=1)
    found = linear_rows(x, weight, impl=impl)
    assert found.shape == (*shape[:-1], 7)
    assert_right(found, x, weight, None, impl)


@pytest.mark.parametrize("impl", IMPLS)
def test_arguments_may_lie_in_memory_in_any_way(impl):
    x, weight, bias = normal(5, 50), normal(20, 50, seed=1), normal(20, seed=2)
    expected = linear_rows(x, weight, bias, impl=impl)
    ways = {
        "every second": [torch.stack([t, t + 1], -1)[..., 0] for t in (x, weight, bias)],
        "across": [x.T.contiguous().T, weight.T.contiguous().T, bias],
        "cut from a larger": [torch.cat([t + 1, t], -1)[..., t.shape[-1] :] for t in (x, weight, bias)],
    }
    for name, (x_, weight_, bias_) in ways.items():
        assert torch.equal(x_, x), name
        found = linear_rows(x_, weight_, bias_, impl=impl)
        assert_right(found, x, weight, bias, name)
        if impl == "cpu":
            assert torch.equal(found, expected), name


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("stored", FLOATS)
def test_dtypes_may_differ(impl, dtype, stored):
    x, weight, bias = normal(3, 40, dtype=dtype), normal(9, 40, seed=1, dtype=stored), normal(9, seed=2)
    found = linear_rows(x, weight, bias, impl=impl)
    assert found.dtype == dtype
    if impl != "reference" or torch.float32 in (dtype, stored):
        assert_right(found, x, weight, bias, impl)


def test_sums_of_narrow_numbers_are_wide():
    """Of bfloat16 numbers, none of which a narrow sum could hold beside the first."""
    x, weight = torch.ones(1, 129, dtype=torch.bfloat16), torch.ones(1, 129, dtype=torch.bfloat16)
    weight[0, 0] = 256.0
    assert linear_rows(x, weight).item() == 384.0
    assert linear_rows(x, weight, impl="torch").item() == 384.0


@pytest.mark.parametrize("impl", ["torch", "reference"])
def test_gradients_are_right(impl):
    x, weight, bias = (normal(*s, dtype=torch.float64).requires_grad_() for s in ((2, 3, 5), (4, 5), (4,)))

    def run(*tensors):
        return linear_rows(*tensors, impl=impl)

    assert torch.autograd.gradcheck(run, (x, weight, bias))


def test_where_a_gradient_is_asked_for_auto_gives_one():
    x, weight = normal(3, 8), normal(4, 8, seed=1).requires_grad_()
    assert learns(x, weight)
    linear_rows(x, weight).sum().backward()
    assert torch.equal(weight.grad, x.sum(0).expand(4, 8))


WRONG = {
    "weight must have the shape (O, I=8); got (8,)": {"weight": normal(8)},
    "weight must have the shape (O, I=7); got (4, 8)": {"x": normal(3, 7)},
    "x must have the shape (..., I); got ()": {"x": torch.tensor(1.0)},
    "bias must have the shape (O=4); got (8,)": {"bias": normal(8)},
    "x must be of float64, float32, bfloat16 or float16; got torch.int64": {"x": torch.ones(3, 8).long()},
    "weight must match x, which is torch.float32 on cpu; got meta": {
        "weight": torch.empty(4, 8, device="meta")
    },
    "impl='cuda' does not exist for linear_rows; choose from auto, cpu, torch, reference": {"impl": "cuda"},
    "cpu cannot serve gradient": {"weight": normal(4, 8).requires_grad_(), "impl": "cpu"},
    "cpu cannot serve a weight in float64": {"weight": normal(4, 8).double(), "impl": "cpu"},
    "cpu does not take float16": {"x": normal(3, 8).half(), "impl": "cpu"},
}


@pytest.mark.parametrize(("message", "wrong"), WRONG.items(), ids=range(len(WRONG)))
def test_it_says_what_is_wrong(message, wrong):
    with pytest.raises(ValueError) as raised:  # noqa: PT011  (the message is compared below)
        linear_rows(**{"x": normal(3, 8), "weight": normal(4, 8), **wrong})
    assert message in str(raised.value)


def test_what_the_kernel_cannot_serve_goes_to_torch():
    x, weight = normal(3, 8), normal(4, 8, seed=1, dtype=torch.float64)
    assert torch.equal(linear_rows(x, weight), linear_rows(x, weight, impl="torch"))
