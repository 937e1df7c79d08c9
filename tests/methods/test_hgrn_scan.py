"""The gated recurrence against a loop in NumPy, gates from logits, and sequences packed into a row."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from common import assert_same
from torch import nn, ones

from nonet.matmulfree import MLGRU, hgrn_scan
from nonet.matmulfree.impl.torch import hgrn_scan as fast_scan
from nonet.testing import assert_within_budget

both = pytest.mark.parametrize("impl", ["torch", "reference"])


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@both
@pytest.mark.parametrize("length", [1, 2, 3, 4, 15, 16, 17, 50])
def test_scan_is_the_loop(length, impl):
    i, f, h = normal(2, 3, length), normal(2, 3, length), normal(2, 3)
    expected, state = np.empty((2, 3, length)), h.numpy()
    for t in range(length):
        state = f[..., t].numpy() * state + i[..., t].numpy()
        expected[..., t] = state
    out, last = hgrn_scan(i, f, h, return_last_state=True, impl=impl)
    assert_same(out, torch.from_numpy(expected))
    assert torch.equal(last, out[..., -1])
    assert last.untyped_storage().nbytes() == last.nbytes  # it does not keep the others in memory


@both
@pytest.mark.parametrize("bounded", [False, True])
def test_gates_from_logits_are_the_loop(bounded, impl):
    i, f, h, bound = normal(2, 3, 19), normal(2, 3, 19), normal(2, 3), torch.rand(3, dtype=torch.float64)
    least, state = bound.numpy() if bounded else 0.0, h.numpy()
    expected = np.empty((2, 3, 19))
    for t in range(19):
        kept = least + (1 - least) / (1 + np.exp(-f[..., t].numpy()))
        new = i[..., t].numpy() / (1 + np.exp(-i[..., t].numpy()))
        state = kept * state + (1 - kept) * new
        expected[..., t] = state
    options = {"from_logits": True, "lower_bound": bound if bounded else None}
    assert_same(hgrn_scan(i, f, h, **options, impl=impl), torch.from_numpy(expected))


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_logit_of_infinity_leaves_the_state(dtype, impl):
    i, f, h = 100 * torch.randn(2, 3, 1), torch.full((2, 3, 1), torch.inf), torch.randn(2, 3)
    options = {"from_logits": True, "lower_bound": torch.rand(3), "return_last_state": True}
    out, last = hgrn_scan(i.to(dtype), f.to(dtype), h, **options, impl=impl)
    assert torch.equal(last, h)
    assert (out.dtype, last.dtype) == (dtype, torch.float32)


def test_gates_of_bfloat16_come_close_to_one():
    """Rounded to this dtype the gate would be one, and nothing would ever be forgotten."""
    i, f = torch.zeros(1, 1, 2000).bfloat16(), torch.full((1, 1, 2000), 8.0).bfloat16()
    _, last = hgrn_scan(i, f, torch.ones(1, 1), return_last_state=True, from_logits=True, impl="torch")
    gold = torch.sigmoid(torch.tensor([[8.0]]).double()) ** 2000
    # The same gate 2000 times errs 2000 times as much.
    assert_within_budget(last, gold, gold, "what is left", scale=2000 * gold.item())


@both
@pytest.mark.parametrize("length", [1, 2, 5, 13])
def test_gradients_of_the_scan(length, impl):
    i, f, h = normal(2, 3, length), normal(2, 3, length), normal(2, 3)
    f[..., length // 2] = 0.0  # a division by products of f would show
    i, f, h = (t.requires_grad_() for t in (i, f, h))
    assert torch.autograd.gradcheck(lambda *a: hgrn_scan(*a, return_last_state=True, impl=impl), (i, f, h))
    assert torch.autograd.gradcheck(lambda i, f: hgrn_scan(i, f, impl=impl), (i, f))


@both
def test_gradients_through_gates(impl):
    inputs = [t.requires_grad_() for t in (normal(1, 3, 5), normal(1, 3, 5), normal(2, 3), normal(3))]
    ends = torch.tensor([0, 2, 5])

    def run(i, f, h, bound):
        options = {"lower_bound": bound, "cu_seqlens": ends, "return_last_state": True}
        return hgrn_scan(i, f, h, from_logits=True, **options, impl=impl)

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("length", [1, 40])
def test_scan_operators_are_registered_right(length):
    i, f, h, g = (torch.randn(2, length, 6) for _ in range(4))
    for t in (i, f.mT.contiguous().mT):
        torch.library.opcheck(torch.ops.nonet.hgrn_scan, (t, f, h[:, 0]))
        torch.library.opcheck(torch.ops.nonet.hgrn_scan_backward, (t, h, f[:, 0], g))


# The compiler warns of itself: on import, and of how it calls autograd functions.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scan_compiles_into_one_graph():
    i, f = torch.randn(2, 6, 40).double().requires_grad_(), torch.rand(2, 6, 40).double()
    compiled = torch.compile(fast_scan, fullgraph=True, backend="aot_eager")
    results = []
    for scan in (compiled, fast_scan):
        out, last = scan(i, f, initial_state=None, from_logits=True, lower_bound=None)
        results.append((out, last, *torch.autograd.grad(out.square().sum() + last.sum(), i)))
    for name, found, plain in zip(("out", "last", "gradient"), *results, strict=True):
        assert_same(found, plain, name)


# Sequences in one row

ENDS = torch.tensor([0, 4, 5, 11])


@both
@pytest.mark.parametrize("continued", [False, True])
def test_a_sequence_in_a_row_is_as_if_alone(continued, impl):
    i, f, h = normal(1, 3, 11), normal(1, 3, 11), normal(3, 3) if continued else None
    out, last = hgrn_scan(i, f, h, return_last_state=True, cu_seqlens=ENDS.int(), impl=impl)
    for k, (start, end) in enumerate(pairwise(ENDS.tolist())):
        state = None if h is None else h[k : k + 1]
        alone = hgrn_scan(i[..., start:end], f[..., start:end], state, impl="reference")
        assert_same(out[..., start:end], alone, f"sequence {k}")
        assert_same(last[k : k + 1], alone[..., -1], f"state {k}")


def test_the_mixer_keeps_sequences_apart():
    m, x, h = MLGRU(8, linear=nn.Linear).double(), normal(1, 11, 8), normal(3, 8)
    out, last = m(x, h, return_last_state=True, cu_seqlens=ENDS)
    for k, (start, end) in enumerate(pairwise(ENDS.tolist())):
        alone, state = m(x[:, start:end], h[k : k + 1], return_last_state=True)
        assert_same(out[:, start:end], alone, f"sequence {k}")
        assert_same(last[k : k + 1], state, f"state {k}")


# Wrong use

TAKEN, KEPT = ones(2, 3, 4), ones(2, 3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: hgrn_scan(ones(2, 3), KEPT), r"i must have the shape \(B, C, T\)"),
        (lambda: hgrn_scan(TAKEN, ones(2, 3, 5)), r"f must have the shape .*T=4.*3, 5\)"),
        (lambda: hgrn_scan(TAKEN, KEPT, ones(3, 3)), "initial_state must hold 2 states"),
        (lambda: hgrn_scan(TAKEN, KEPT, ones(2, 3).long()), "initial_state must be of float64, float32"),
        (lambda: hgrn_scan(TAKEN, KEPT.double()), "f must match i"),
        (lambda: hgrn_scan(TAKEN.long(), KEPT), "i must be of float64, float32"),
        (lambda: hgrn_scan(ones(2, 3, 0), ones(2, 3, 0)), "C and T above zero"),
        (lambda: hgrn_scan(TAKEN, KEPT, impl="cuda"), "impl='cuda' does not exist"),
        (lambda: hgrn_scan(TAKEN, KEPT, lower_bound=ones(3)), "lower_bound needs from_logits=True"),
        (lambda: hgrn_scan(TAKEN, KEPT, from_logits=True, lower_bound=ones(2)), "lower_bound must .*C=3"),
        (lambda: hgrn_scan(TAKEN, KEPT, cu_seqlens=torch.tensor([0, 4])), "into one row, B=1; got B=2"),
        (
            lambda: hgrn_scan(TAKEN[:1], KEPT[:1], cu_seqlens=torch.tensor([0, 3])),
            "end at T=4 and rise at every place; got .0, 3.",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
