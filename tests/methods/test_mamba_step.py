"""A whole block for one token: against Transformers' layers, in the block, and where it may not be used."""

import pytest
import torch
from common import normal
from torch import nn
from transformers import FalconMambaConfig, FalconMambaModel, MambaConfig, MambaModel

from nonet.mamba import Mamba, MambaState, api, layer, mamba_step
from nonet.testing import assert_within_rounding

B, E, C, N, R, TAPS = 2, 20, 40, 6, 2, 4
IMPLS = ("torch", "reference")


def arguments(dtype=torch.float32):
    shapes = {
        "x": (B, E),
        "conv_state": (B, C, TAPS - 1),
        "ssm_state": (B, C, N),
        "in_proj": (2 * C, E),
        "conv_weight": (C, TAPS),
        "conv_bias": (C,),
        "x_proj": (R + 2 * N, C),
        "dt_proj": (C, R),
        "dt_bias": (C,),
        "A_log": (C, N),
        "D": (C,),
        "out_proj": (E, C),
        "in_bias": (2 * C,),
        "out_bias": (E,),
    }
    return {name: normal(*s, seed=i, dtype=dtype) * 0.3 for i, (name, s) in enumerate(shapes.items())}


def block(**options):
    torch.manual_seed(0)
    return Mamba(E, N, **options).requires_grad_(False)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("model", [(MambaConfig, MambaModel), (FalconMambaConfig, FalconMambaModel)])
def test_steps_are_those_of_transformers(model, biased, impl):
    config, kind = model
    options = {"hidden_size": E, "state_size": N, "use_bias": biased, "use_conv_bias": biased}
    theirs = kind(config(**options, vocab_size=8, num_hidden_layers=1)).eval().layers[0].mixer
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = normal(B, 9, E)

    def ours(dtype, impl):
        w = {name: p.to(dtype) for name, p in theirs.named_parameters()}
        conv, ssm = torch.zeros(B, C, TAPS, dtype=dtype), torch.zeros(B, C, N, dtype=dtype)
        outs = []
        for token in x.to(dtype).unbind(1):
            out, conv, ssm = mamba_step(
                token,
                conv,
                ssm,
                w["in_proj.weight"],
                w["conv1d.weight"][:, 0],
                w.get("conv1d.bias"),
                w["x_proj.weight"],
                w["dt_proj.weight"],
                w["dt_proj.bias"],
                w["A_log"],
                w["D"],
                w["out_proj.weight"],
                in_bias=w.get("in_proj.bias"),
                out_bias=w.get("out_proj.bias"),
                norm_eps=getattr(theirs, "rms_eps", None),
                impl=impl,
            )
            outs.append(out)
        return torch.stack(outs, 1)

    with torch.no_grad():
        found = [ours(torch.float32, impl), theirs(x)]
        assert_within_rounding(found, lambda: [ours(torch.float64, "reference")] * 2)


def test_gradients_are_right():
    a = {name: v.requires_grad_() for name, v in arguments(torch.float64).items()}

    def run(*values):
        return mamba_step(**dict(zip(a, values, strict=True)), norm_eps=0.1, impl="torch")

    assert torch.autograd.gradcheck(run, tuple(a.values()), fast_mode=True)


@pytest.mark.parametrize("impl", IMPLS)
def test_states_keep_their_precision(impl):
    a = {name: v.bfloat16() for name, v in arguments().items()}
    for conv in (a["conv_state"], a["conv_state"].float()):
        out, conv_after, ssm = mamba_step(**{**a, "conv_state": conv}, impl=impl)
        assert (out.dtype, conv_after.dtype, ssm.dtype) == (torch.bfloat16, conv.dtype, torch.float32)
        assert torch.equal(conv_after[..., :-1], conv[..., 1:])


def test_asking_for_gradients_is_told_to_the_choice(monkeypatch):
    asked = []

    def record(op, impl, tensor, options=()):
        asked.append(options)
        return lambda *args, **kwargs: None

    monkeypatch.setattr(api, "implementation", record)
    a = arguments()
    mamba_step(**a)
    mamba_step(**{**a, "out_bias": a["out_bias"].requires_grad_()})
    with torch.no_grad():
        mamba_step(**a)
    assert asked == [(), ("gradient",), ()]


WRONG = {
    "in_proj must have the shape (2C=80, E=20); got (40, 20)": {"in_proj": normal(40, E)},
    "x_proj must have the shape (R+2N, C=40); got (40, 14)": {"x_proj": normal(C, 14)},
    "ssm_state must have the shape (B=2, C=40, N); got (3, 40, 6)": {"ssm_state": normal(3, C, N)},
    "in_bias must have the shape (2C=80); got (40,)": {"in_bias": normal(C)},
    "conv_state must hold W - 1=3 inputs at least; got L=2": {"conv_state": normal(B, C, 2)},
    "out_proj must match x, which is torch.float32 on cpu": {"out_proj": normal(E, C).double()},
    "A_log must be of float64, float32, bfloat16 or float16; got torch.int64": {
        "A_log": torch.ones(C, N).long()
    },
    "norm_eps must be above zero; got 0.0": {"norm_eps": 0.0},
    "impl='cuda' does not exist for mamba_step; choose from auto": {"impl": "cuda"},
}


@pytest.mark.parametrize(("message", "wrong"), WRONG.items(), ids=range(len(WRONG)))
def test_step_says_what_is_wrong(message, wrong):
    with pytest.raises(ValueError) as raised:  # noqa: PT011  (the message is compared below)
        mamba_step(**{**arguments(), **wrong})
    assert message in str(raised.value)


# In the block.


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls of the whole step."""
    made = []
    monkeypatch.setattr(layer, "mamba_step", lambda *a, **k: made.append(1) or mamba_step(*a, **k))
    return made


def steps(m, x, dtype=torch.float32):
    m, state, outs = m.to(dtype), None, []
    for token in x.to(dtype).unbind(1):
        out, state = m.step(token, state)
        outs.append(out)
    return torch.stack(outs, 1), *state


@pytest.mark.parametrize("conv_width", [1, 2, 4])
def test_the_block_steps_in_one_call(calls, conv_width):
    m, x = block(conv_width=conv_width), normal(B, 9, E)
    with torch.no_grad():
        found = steps(m, x)
        assert len(calls) == 8  # the first token has no state to continue from
    m = m.double()

    def whole():
        out, state = m(x.double(), return_last_state=True)
        return [out, *state]

    assert_within_rounding(found, whole)


def test_biases_of_the_outer_projections_are_used(calls):
    def linear(inside, outside, bias):
        return nn.Linear(inside, outside, bias=E in (inside, outside))

    m, x = block(linear=linear), normal(B, 5, E)
    with torch.no_grad():
        found = steps(m, x)[0]
    assert len(calls) == 4
    m = m.double()
    assert_within_rounding(found, lambda: m(x.double()))


class Wrapped(nn.Linear):
    """A linear layer that may compute anything."""


@pytest.mark.parametrize(
    "change",
    [
        lambda m: setattr(m, "x_proj", Wrapped(C, len(m.x_proj.weight), bias=False)),
        lambda m: setattr(m, "dt_proj", nn.Linear(R, C)),
        lambda m: m.in_proj.register_forward_hook(lambda *a: None),
        lambda m: m.out_proj.register_forward_pre_hook(lambda *a: None),
        lambda m: setattr(m.in_proj, "forward", m.in_proj.forward),
        lambda m: nn.utils.parametrizations.weight_norm(m.in_proj),
    ],
    ids=["another class", "a bias that has no place", "a hook", "a hook before", "another forward", "norm"],
)
def test_modules_that_do_more_are_called(calls, change):
    m, x = block(), normal(B, 3, E)
    change(m)
    with torch.no_grad():
        steps(m, x)
    assert not calls


def test_what_needs_the_whole_way_takes_it(calls):
    m, x = block(), normal(B, 2, E)
    steps(m, x)  # gradients could be asked for
    with torch.no_grad():
        _, state = m(x, return_last_state=True)
        m(x, state)
        m(x[:, :1], state, real=torch.ones(B, 1, dtype=torch.bool))
        one = MambaState(*(s[:1] for s in state))
        m(x[:1, :1], one, cu_seqlens=torch.tensor([0, 1]))
        with torch.autocast("cpu", torch.bfloat16):
            steps(m, x)
    assert not calls


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch.compile does so itself
def test_a_step_compiles_into_one_graph(calls):
    m, x = block(), normal(B, E)
    state = MambaState(normal(B, C, TAPS - 1), normal(B, C, N))
    with torch.no_grad():
        out, after = torch.compile(m.step, fullgraph=True, backend="eager")(x, state)
        assert calls
        expected, last = m.step(x, state)
    assert all(map(torch.equal, (out, *after), (expected, *last)))
