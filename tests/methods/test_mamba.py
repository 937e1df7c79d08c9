"""Mamba against Transformers' block, against a NumPy loop, and against itself in parts."""

import copy
import math

import numpy as np
import pytest
import torch
from common import assert_same
from torch import nn
from transformers.models.mamba import MambaConfig as TheirConfig
from transformers.models.mamba.modeling_mamba import MambaMixer as TheirBlock

from nonet import NonetConfig, NonetForCausalLM
from nonet.mamba import Mamba, MambaConfig, MambaMixer, causal_conv1d, selective_scan
from nonet.mamba.impl import torch as fast
from nonet.slots import Context, Dims
from nonet.testing import assert_within_rounding

E, N = 20, 4
IMPLS = ("torch", "reference")
SMALL = {
    "pattern": "M",
    "hidden_size": E,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "vocab_size": 64,
    "options": {"mamba": {"state_size": N}},
}
# Of a bias that stands for a step: near a step of 0.001 it is about -7, a thousand times its error.
ROUNDING = 1 + 1e3 * torch.finfo(torch.float32).eps


class Kept(dict):
    """What a cache keeps for one layer."""

    put = dict.__setitem__


def tokens(*shape, seed=1, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def block(**options):
    torch.manual_seed(0)
    return Mamba(E, N, **options).requires_grad_(False)


def mixer(linear=nn.Linear, **options):
    torch.manual_seed(0)
    dims = Dims(hidden=E, heads=1, kv_heads=1, head_dim=E, layers=3, max_length=64)
    return MambaMixer(dims, MambaConfig(state_size=N, **options), 0, linear).requires_grad_(False)


def context(length, past=0, **padding):
    return Context(torch.arange(past, past + length)[None], past, **padding)


def scan_arguments(batch=2, channels=3, length=11, dtype=torch.float32):
    """Every argument of the recurrence."""
    shapes = {
        "u": (batch, channels, length),
        "delta": (batch, channels, length),
        "A": (channels, N),
        "B": (batch, N, length),
        "C": (batch, N, length),
        "D": (channels,),
        "z": (batch, channels, length),
        "delta_bias": (channels,),
        "initial_state": (batch, channels, N),
    }
    arguments = {n: tokens(*s, seed=i, dtype=dtype) for i, (n, s) in enumerate(shapes.items())}
    return {**arguments, "A": -arguments["A"].exp()}


# Against other people's code.


def test_block_is_that_of_transformers():
    ours = block()
    theirs = TheirBlock(TheirConfig(hidden_size=E, state_size=N, num_hidden_layers=1), 0).eval()
    weights = ours.state_dict()
    weights["conv1d.weight"] = weights.pop("conv_weight")[:, None]
    weights["conv1d.bias"] = weights.pop("conv_bias")
    weights["dt_proj.bias"] = weights.pop("dt_bias")
    theirs.load_state_dict(weights)
    x = tokens(2, 19, E)
    exact = copy.deepcopy(ours).double()
    with torch.no_grad():
        assert_within_rounding([ours(x), theirs(x)], lambda: [exact(x.double())] * 2)


@pytest.mark.parametrize("impl", IMPLS)
def test_scan_is_a_loop_in_numpy(impl):
    arguments = scan_arguments(dtype=torch.float64)
    a = {name: value.numpy().copy() for name, value in arguments.items()}
    step = np.log1p(np.exp(a["delta"] + a["delta_bias"][:, None]))
    gold = np.empty_like(a["u"])
    h = a["initial_state"]
    for b, c, t in np.ndindex(gold.shape):
        for n in range(N):
            decay = np.exp(step[b, c, t] * a["A"][c, n])
            h[b, c, n] = decay * h[b, c, n] + step[b, c, t] * a["B"][b, n, t] * a["u"][b, c, t]
        y = h[b, c] @ a["C"][b, :, t] + a["D"][c] * a["u"][b, c, t]
        gold[b, c, t] = y * a["z"][b, c, t] / (1 + np.exp(-a["z"][b, c, t]))
    out, last = selective_scan(**arguments, delta_softplus=True, return_last_state=True, impl=impl)
    assert_same(out, torch.from_numpy(gold), "out")
    assert_same(last, torch.from_numpy(h), "last")


@pytest.mark.parametrize("impl", IMPLS)
def test_convolution_is_that_of_torch(impl):
    x, weight, bias = (tokens(*shape, dtype=torch.float64) for shape in ((2, 3, 9), (3, 4), (3,)))
    theirs = nn.functional.conv1d(nn.functional.pad(x, (3, 0)), weight[:, None], bias, groups=3)
    assert_same(causal_conv1d(x, weight, bias, impl=impl), theirs)


# The two operations.


@pytest.mark.parametrize("softplus", [False, True])
def test_gradients_of_the_scan_are_right(monkeypatch, softplus):
    monkeypatch.setattr(fast, "_BLOCK", 1)  # the shortest blocks, so that 11 tokens are two
    arguments = {n: v.requires_grad_() for n, v in scan_arguments(1, 2, dtype=torch.float64).items()}

    def run(*values):
        named = dict(zip(arguments, values, strict=True))
        return selective_scan(**named, delta_softplus=softplus, return_last_state=True, impl="torch")

    assert torch.autograd.gradcheck(run, tuple(arguments.values()))


@pytest.mark.parametrize("activation", [None, "silu"])
def test_gradients_of_the_convolution_are_right(activation):
    shapes = ((2, 3, 6), (3, 4), (3,), (2, 3, 3))
    inputs = tuple(tokens(*s, seed=i, dtype=torch.float64).requires_grad_() for i, s in enumerate(shapes))

    def run(x, weight, bias, state):
        return causal_conv1d(x, weight, bias, activation, state, return_last_state=True, impl="torch")

    assert torch.autograd.gradcheck(run, inputs)


@pytest.mark.parametrize("impl", IMPLS)
def test_a_decay_to_nothing_stays_finite(impl):
    """Thousands of nats of forgetting: neither a product of decays nor its inverse is ever needed."""
    arguments = scan_arguments(length=40)
    arguments["A"] *= 1e4
    u = arguments["u"].requires_grad_()
    out = selective_scan(**arguments, delta_softplus=True, impl=impl)
    (grad,) = torch.autograd.grad(out.sum(), u)
    assert torch.isfinite(out).all()
    assert torch.isfinite(grad).all()


@pytest.mark.parametrize("impl", IMPLS)
def test_half_precision_keeps_a_state_in_single(impl):
    arguments = scan_arguments()
    narrow = {n: arguments[n].bfloat16() for n in ("u", "delta", "B", "C", "z")}
    out, last = selective_scan(**{**arguments, **narrow}, return_last_state=True, impl=impl)
    assert (out.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    out, last = causal_conv1d(narrow["u"], tokens(3, 4), tokens(3), "silu", return_last_state=True, impl=impl)
    assert (out.dtype, last.dtype) == (torch.bfloat16, torch.bfloat16)


def test_autocast_leaves_the_state_in_single():
    arguments = {n: v.requires_grad_() for n, v in scan_arguments().items()}

    def run():
        out = selective_scan(**arguments, delta_softplus=True, impl="torch")
        return out, *torch.autograd.grad(out.sum(), list(arguments.values()))

    plain = run()
    with torch.autocast("cpu", torch.bfloat16):
        within = run()
    assert all(torch.equal(a, b) for a, b in zip(plain, within, strict=True))


def test_training_keeps_few_states():
    kept = 0

    def count(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    batch, channels, length = 2, 64, 1024
    arguments = {n: v.requires_grad_() for n, v in scan_arguments(batch, channels, length).items()}
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        selective_scan(**arguments, delta_softplus=True, impl="torch")
    states = batch * channels * N * length
    everything_else = 12 * batch * channels * length
    assert kept < states / fast._LEAST + everything_else


def test_operators_are_well_formed():
    dt, x = tokens(11, 2, 3).abs(), tokens(11, 2, 3)
    A, B, C, h = -tokens(N, 3).abs(), tokens(11, 2, N), tokens(11, 2, N), tokens(2, N, 3)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.nonet.mamba_scan, (dt, x, A, B, C, h, True), test_utils=checks)
    _, last, fronts = torch.ops.nonet.mamba_scan(dt, x, A, B, C, h, True)
    torch.library.opcheck(
        torch.ops.nonet.mamba_scan_backward, (dt, x, A, B, C, fronts, x, last), test_utils=checks
    )


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch.compile does so itself
def test_scan_compiles_to_one_graph():
    arguments = {n: v.requires_grad_() for n, v in scan_arguments(dtype=torch.float64).items()}

    def run(function):
        out, last = function(**arguments, delta_softplus=True)
        return out, *torch.autograd.grad(out.sum() + last.sum(), list(arguments.values()))

    compiled = torch.compile(fast.selective_scan, fullgraph=True, backend="aot_eager")
    for name, got, eager in zip(("out", *arguments), run(compiled), run(fast.selective_scan), strict=True):
        assert_same(got, eager, name)


WRONG_SCANS = {
    "delta must have the shape (B=2, C=3, T=11); got (2, 3, 5)": {"delta": tokens(2, 3, 5)},
    "A must have the shape (C=3, N); got (4,)": {"A": tokens(4)},
    "C must have the shape (B=2, N=4, T=11); got (2, 5, 11)": {"C": tokens(2, 5, 11)},
    "D must have the shape (C=3); got (4,)": {"D": tokens(4)},
    "initial_state must have the shape (n, C=3, N=4); got (2, 4, 3)": {"initial_state": tokens(2, 4, 3)},
    "delta_bias must be of float64, float32, bfloat16 or float16; got torch.int64": {
        "delta_bias": torch.ones(3).long()
    },
    "z must match u, which is torch.float32 on cpu; got torch.float64": {"z": tokens(2, 3, 11).double()},
    "impl='cuda' does not exist for selective_scan; choose from auto": {"impl": "cuda"},
}


@pytest.mark.parametrize(("message", "wrong"), WRONG_SCANS.items(), ids=range(len(WRONG_SCANS)))
def test_scan_says_what_is_wrong(message, wrong):
    with pytest.raises(ValueError) as raised:  # noqa: PT011  (the message is compared below)
        selective_scan(**{**scan_arguments(), **wrong})
    assert message in str(raised.value)


def test_scan_of_nothing_is_refused():
    with pytest.raises(ValueError, match=r"C and T above zero; got \(2, 3, 0\)"):
        selective_scan(**scan_arguments(length=0))


WRONG_CONVOLUTIONS = {
    "weight must have the shape (C=3, W); got (4, 2)": {"weight": tokens(4, 2)},
    "activation='gelu' is not known; choose from None, silu": {"activation": "gelu"},
    "initial_state must have the shape (n, C=3, W-1=1); got (2, 3, 2)": {"initial_state": tokens(2, 3, 2)},
}


@pytest.mark.parametrize(("message", "wrong"), WRONG_CONVOLUTIONS.items(), ids=range(len(WRONG_CONVOLUTIONS)))
def test_convolution_says_what_is_wrong(message, wrong):
    with pytest.raises(ValueError) as raised:  # noqa: PT011  (the message is compared below)
        causal_conv1d(**{"x": tokens(2, 3, 5), "weight": tokens(3, 2), **wrong})
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"state_size": 0}, "state_size must be above zero"),
        ({"dt_rank": 0}, "dt_rank must be above zero"),
        ({"dt_min": 0.2}, "dt_max=0.1 must not be below dt_min=0.2"),
    ],
)
def test_options_say_what_is_wrong(options, message):
    with pytest.raises(ValueError, match=message):
        MambaConfig(**options)


# The block.


def test_step_by_step_is_the_whole():
    m = block()
    x = tokens(2, 13, E)
    state, outs = None, []
    for t in range(13):
        out, state = m.step(x[:, t], state)
        outs.append(out)
    m = m.double()

    def whole():
        out, state = m(x.double(), return_last_state=True)
        return [out, *state]

    assert_within_rounding([torch.stack(outs, 1), *state], whole)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_of_any_size_are_the_whole(seed):
    m = mixer()
    x = tokens(2, 40, E)
    cuts = torch.randperm(39, generator=torch.Generator().manual_seed(seed))[: 3 * seed + 1] + 1
    state, outs, past = Kept(), [], 0
    for piece in x.tensor_split(cuts.sort().values.tolist(), dim=1):
        outs.append(m(piece, context(piece.shape[1], past), state))
        past += piece.shape[1]
    m = m.double()
    assert_within_rounding(torch.cat(outs, 1), lambda: m(x.double(), context(40)))


def test_state_does_not_grow():
    m = mixer()
    shapes = []
    for length in (1, 50):
        state = Kept()
        m(tokens(2, length, E), context(length), state)
        shapes.append({name: tuple(kept.shape) for name, kept in state.items()})
    assert shapes[0] == shapes[1] == {"conv": (2, 2 * E, 3), "ssm": (2, 2 * E, N)}


@pytest.mark.parametrize("pieces", [(12,), (5, 7), (2, 1, 9)])
def test_padding_on_the_left_is_none(pieces):
    m = mixer()
    pads = torch.tensor([0, 3, 9])
    x = tokens(3, 12, E)
    state, outs, past = Kept(), [], 0
    for piece in x.split(pieces, dim=1):
        outs.append(m(piece, context(piece.shape[1], past, starts=pads), state))
        past += piece.shape[1]
    m, out = m.double(), torch.cat(outs, 1)

    def alone():
        kept = [Kept() for _ in pads]
        rows = [m(x[b : b + 1, p:].double(), context(12 - p), kept[b]) for b, p in enumerate(pads.tolist())]
        return [torch.cat(rows, 1), *(torch.cat([k[name] for k in kept]) for name in ("conv", "ssm"))]

    rows = torch.cat([out[b : b + 1, pad:] for b, pad in enumerate(pads)], 1)
    assert_within_rounding([rows, state["conv"], state["ssm"]], alone)


def test_padding_on_the_right_leaves_the_state():
    ends = torch.tensor([12, 7, 2])
    m, exact = mixer(), mixer().double()
    x = tokens(3, 12, E)
    state = Kept()
    for past, piece in ((0, x[:, :5]), (5, x[:, 5:])):
        m(piece, context(piece.shape[1], past, ends=ends), state)

    def alone():
        kept = [Kept() for _ in ends]
        for b, end in enumerate(ends.tolist()):
            exact(x[b : b + 1, :end].double(), context(end), kept[b])
        return [torch.cat([k[name] for k in kept]) for name in ("conv", "ssm")]

    assert_within_rounding([state["conv"], state["ssm"]], alone)


def test_what_is_on_padding_does_not_matter():
    m = mixer()
    x = tokens(2, 8, E).requires_grad_()
    padded = context(8, starts=torch.tensor([3, 0]), ends=torch.tensor([8, 6]))
    real = padded.real()
    (grad,) = torch.autograd.grad(m(x, padded)[real].sum(), x)
    assert torch.equal(grad.abs().sum(-1) > 0, real)


def test_the_future_does_not_matter():
    m = mixer()
    x = tokens(2, 20, E)
    other = torch.cat([x[:, :8], tokens(2, 12, E, seed=2)], 1)
    assert torch.equal(m(x, context(20))[:, :8], m(other, context(20))[:, :8])


def test_every_parameter_learns():
    m = block().requires_grad_()
    m(tokens(2, 9, E)).square().sum().backward()
    for name, parameter in m.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def check_first_values(m, layers):
    channels = len(m.D)
    assert torch.equal(m.A_log, torch.arange(1.0, N + 1).log().expand(channels, N))
    assert torch.equal(m.D, torch.ones(channels))
    steps = nn.functional.softplus(m.dt_bias.double())
    assert steps.min() > 1e-3 / ROUNDING
    assert steps.max() < 0.1 * ROUNDING
    # Even on a logarithmic scale: about half lie below the geometric mean.
    assert 0.25 < (steps < math.sqrt(1e-3 * 0.1)).double().mean() < 0.75
    for weight, fan in ((m.dt_proj.weight, m.widths[0]), (m.out_proj.weight, channels * layers)):
        assert 0.8 * fan**-0.5 < weight.abs().max() <= fan**-0.5


def test_first_values_of_the_block():
    check_first_values(block(), 1)


def test_first_values_survive_those_of_the_model():
    model = NonetForCausalLM(NonetConfig(**SMALL))
    for layer in model.model.layers:
        check_first_values(layer.mixer.mamba, SMALL["num_hidden_layers"])


def test_first_values_leave_what_was_loaded(tmp_path):
    model = NonetForCausalLM(NonetConfig(**SMALL))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    loaded = NonetForCausalLM.from_pretrained(tmp_path)
    assert all(map(torch.equal, model.state_dict().values(), loaded.state_dict().values()))
    assert spared(loaded.model.layers[0].mixer.mamba) == {"A_log", "D"}


def test_steps_start_above_the_floor():
    steps = nn.functional.softplus(block(dt_init_floor=0.05).dt_bias.double())
    assert steps.min() > 0.05 / ROUNDING


def spared(m):
    return {name for name, p in m.named_parameters() if getattr(p, "_no_weight_decay", False)}


def test_decay_of_weights_spares_the_recurrence():
    assert spared(block()) == {"A_log", "D"}


def test_projections_come_from_the_factory():
    made = []

    def linear(inside, outside, bias):
        made.append((inside, outside, bias))
        return nn.Linear(inside, outside, bias)

    mixer(linear)
    rank = math.ceil(E / 16)
    channels = 2 * E
    assert made == [
        (E, 2 * channels, False),
        (channels, rank + 2 * N, False),
        (rank, channels, False),
        (channels, E, False),
    ]
