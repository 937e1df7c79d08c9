"""Packed sequences: several in one row give what each gives in a row of its own."""

from itertools import pairwise

import pytest
import torch
from common import assert_same, normal

from nonet.mamba import Mamba, MambaState, causal_conv1d, selective_scan
from nonet.testing import assert_within_rounding

C, N, T, TAPS = 3, 4, 11, 4
ENDS = torch.tensor([0, 4, 5, 11])
IMPLS = ("torch", "reference")
TIMED = {"u", "delta", "B", "C", "z", "x"}


def scan_arguments():
    shapes = {"u": (C, T), "delta": (C, T), "B": (N, T), "C": (N, T), "z": (C, T)}
    arguments = {name: normal(1, *shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    return {**arguments, "A": -normal(C, N).exp(), "D": normal(C), "delta_bias": normal(C)}


def conv_arguments():
    return {"x": normal(1, C, T), "weight": normal(C, TAPS), "bias": normal(C), "activation": "silu"}


OPERATIONS = (
    (selective_scan, {**scan_arguments(), "delta_softplus": True}, N),
    (causal_conv1d, conv_arguments(), TAPS - 1),
)


def alone(operation, arguments, states):
    """Every sequence in a call of its own, by the oracle."""
    results = []
    for k, (start, end) in enumerate(pairwise(ENDS.tolist())):
        cut = {n: v[..., start:end] if n in TIMED else v for n, v in arguments.items()}
        state = None if states is None else states[k : k + 1]
        results.append(operation(**cut, initial_state=state, return_last_state=True, impl="reference"))
    outs, lasts = zip(*results, strict=True)
    return torch.cat(outs, -1), torch.cat(lasts)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("continued", [False, True])
@pytest.mark.parametrize(("operation", "arguments", "width"), OPERATIONS, ids=["scan", "convolution"])
def test_a_sequence_in_a_row_is_as_if_alone(operation, arguments, width, continued, impl):
    arguments = {n: v.double() if isinstance(v, torch.Tensor) else v for n, v in arguments.items()}
    states = normal(3, C, width, seed=9).double() if continued else None
    expected = alone(operation, arguments, states)
    for ends in (ENDS, ENDS.int()):
        packed = operation(
            **arguments, initial_state=states, return_last_state=True, cu_seqlens=ends, impl=impl
        )
        for found, right, name in zip(packed, expected, ("out", "last"), strict=True):
            assert_same(found, right, name)


@pytest.mark.parametrize("continued", [False, True])
def test_a_block_keeps_sequences_apart(continued):
    torch.manual_seed(0)
    m, x = Mamba(20, N).requires_grad_(False), normal(1, T, 20)
    states = MambaState(normal(3, 40, 3, seed=1), normal(3, 40, N, seed=2)) if continued else None
    out, last = m(x, states, return_last_state=True, cu_seqlens=ENDS)
    m = m.double()

    def alone():
        results = []
        for k, (start, end) in enumerate(pairwise(ENDS.tolist())):
            state = states and MambaState(*(s[k : k + 1].double() for s in states))
            y, after = m(x[:, start:end].double(), state, return_last_state=True)
            results.append((y.mT, *after))
        return [torch.cat(ts, -1 if n == 0 else 0) for n, ts in enumerate(zip(*results, strict=True))]

    assert_within_rounding([out.mT, *last], alone)


WRONG = {
    "cu_seqlens must start at 0, end at T=11 and rise at every place; got [0, 12]": torch.tensor([0, 12]),
    "cu_seqlens must start at 0, end at T=11 and rise at every place; got [1, 11]": torch.tensor([1, 11]),
    "cu_seqlens must start at 0, end at T=11 and rise at every place; got [0, 4, 4, 11]": torch.tensor(
        [0, 4, 4, 11]
    ),
    "cu_seqlens must start at 0, end at T=11 and rise at every place; got [0]": torch.tensor([0]),
    "int32 or int64; got torch.float32": torch.tensor([0.0, 11.0]),
    "cu_seqlens must have the shape (ends); got (1, 2)": torch.tensor([[0, 11]]),
}


@pytest.mark.parametrize(("message", "ends"), WRONG.items(), ids=range(len(WRONG)))
def test_wrong_ends_are_told(message, ends):
    with pytest.raises(ValueError) as raised:  # noqa: PT011  (the message is compared below)
        causal_conv1d(normal(1, C, T), normal(C, TAPS), cu_seqlens=ends)
    assert message in str(raised.value)


def test_what_cannot_be_packed_is_told():
    with pytest.raises(ValueError, match="into one row, B=1; got B=2"):
        causal_conv1d(normal(2, C, T), normal(C, TAPS), cu_seqlens=ENDS)
    with pytest.raises(
        ValueError, match=r"initial_state must hold 3 states on its first axis; got the shape \(1, 3, 3\)"
    ):
        causal_conv1d(normal(1, C, T), normal(C, TAPS), initial_state=normal(1, C, 3), cu_seqlens=ENDS)
    with pytest.raises(ValueError, match="real and cu_seqlens cannot both be given"):
        Mamba(20)(normal(1, T, 20), real=torch.ones(1, T, dtype=torch.bool), cu_seqlens=ENDS)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch.compile does so itself
def test_values_are_not_asked_for_while_tracing():
    run = torch.compile(lambda x, w, ends: causal_conv1d(x, w, cu_seqlens=ends), backend="eager")
    x, weight = normal(1, C, T), normal(C, TAPS)
    assert torch.equal(run(x, weight, ENDS), causal_conv1d(x, weight, cu_seqlens=ENDS))
