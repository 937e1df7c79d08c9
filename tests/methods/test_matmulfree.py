import importlib
import itertools
from dataclasses import replace

import numpy as np
import peft
import pytest
import torch
from common import assert_same
from torch import nn, ones
from torch.nn import functional as F

from nonet.matmulfree import (
    METHOD,
    MLGRU,
    BitLinear,
    GatedChannelMixer,
    MLGRUConfig,
    MLGRUMixer,
    pack_ternary,
    ternary_linear,
)
from nonet.matmulfree.reference import bit_linear
from nonet.model import NonetConfig, NonetForCausalLM, StateLayer
from nonet.slots import Context, Dims
from nonet.testing import assert_within_budget, assert_within_rounding, cases
from nonet.testing.case import cast

both = pytest.mark.parametrize("impl", ["torch", "reference"])
forms = pytest.mark.parametrize("form", ["official", "paper"])
linears = pytest.mark.parametrize("linear", [nn.Linear, BitLinear])
XAVIER = (
    2**-2.5 * 3**0.5 * (1 + 1e-6)
)  # the largest first weight of a square matrix, times the root of its width
DIMS = Dims(hidden=16, heads=2, kv_heads=2, head_dim=8, layers=4, max_length=32)
# The compiler warns of itself: on import, and of how it calls autograd functions.
with_compiler = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def bitnet():
    """Transformers' BitNet, which asks for compilation; that would take long."""
    with torch.compiler.set_stance("force_eager"):
        yield importlib.import_module("transformers.integrations.bitnet")


def normal(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def tokens(norm=True, dtype=torch.float64, length=9):
    """Arguments of ``ternary_linear`` that no rounding of the last bit changes much."""
    case = next(c for c in cases(METHOD) if c.op == "ternary_linear" and ("norm" in c.label) is norm)
    return cast(case.make(length, torch.Generator().manual_seed(1)), dtype)


# Ternary weights


def test_weights_are_quantised_as_a_loop_does():
    weight = torch.randn(5, 7)
    mean = np.abs(weight.numpy()).mean(dtype=np.float64)
    packed = pack_ternary(weight)
    for (row, col), value in np.ndenumerate(packed.unpack(torch.int8).numpy()):
        assert value == max(-1, min(1, round(weight[row, col].item() / mean)))
    assert_within_rounding(packed.scale, lambda: weight.double().abs().mean(), "scale")


@with_compiler
def test_quantisers_agree_with_transformers(bitnet):
    weight, x = torch.randn(12, 45), tokens(norm=False, dtype=torch.float32)["x"]
    theirs, rounded = bitnet.WeightQuant.apply(weight), bitnet.ActQuant.apply(x)
    packed = pack_ternary(weight)
    assert torch.equal(packed.unpack(), theirs.sign())
    mean = weight.double().abs().mean
    assert_within_rounding([packed.dequantize(), theirs], lambda: [theirs.sign() * mean()] * 2, "weights")
    # The identity leaves of activations what their rounding leaves.
    identity = replace(pack_ternary(torch.eye(45)), scale=torch.tensor(1.0))
    assert_within_budget(ternary_linear(x, identity), rounded, rounded.double(), "activations")


@pytest.mark.parametrize("width", range(1, 10))
def test_packing_comes_back(width):
    values = torch.randint(-1, 2, (6, width)).float()
    values[0, 0] = 1.0
    packed = pack_ternary(values)
    for dtype in (torch.float32, torch.bfloat16, torch.int8):
        assert torch.equal(packed.unpack(dtype), values.to(dtype))
    assert packed.codes.dtype == torch.uint8
    assert packed.nbytes == 6 * -(-width // 4) + 4  # two bits a weight, and a scale


def test_the_first_weight_lies_in_the_lowest_bits():
    packed = pack_ternary(torch.tensor([[-1.0, 0.0, 1.0, 1.0, 0.0]]))
    assert packed.codes.tolist() == [[0b10_10_01_00, 0b01_01_01_01]]


def test_a_matrix_of_zeros_stays_zero():
    packed = pack_ternary(torch.zeros(3, 4))
    assert not packed.dequantize().any()
    assert not ternary_linear(torch.randn(2, 4), packed).any()


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_those_of_integers(impl, dtype):
    rng = np.random.default_rng(0)
    w, x = rng.integers(-1, 2, (11, 300)), rng.integers(-127, 128, (5, 300))
    x[:, 7] = 127  # so that a step is one
    expected = np.zeros((5, 11), dtype=np.int32)
    for t, o, k in itertools.product(range(5), range(11), range(300)):
        expected[t, o] += np.int32(w[o, k]) * np.int32(x[t, k])
    packed = replace(pack_ternary(torch.from_numpy(w).float()), scale=torch.tensor(1.0))
    out = ternary_linear(torch.from_numpy(x).to(dtype), packed, impl=impl)
    assert torch.equal(out, torch.from_numpy(expected).to(dtype))


def test_any_leading_shape():
    packed, x = pack_ternary(torch.randn(3, 8)), torch.randn(2, 5, 8)
    whole = ternary_linear(x, packed)
    assert torch.equal(ternary_linear(x[0, 0], packed), whole[0, 0])
    assert torch.equal(ternary_linear(x[None], packed)[0], whole)
    assert ternary_linear(x[:0], packed).shape == (0, 5, 3)


# The layer


def layer_and_input(dtype, bias=False):
    a = tokens(dtype=dtype)
    layer = BitLinear(45, 20, bias=bias, dtype=dtype)
    values = {"weight": torch.randn(20, 45), "norm_weight": a["norm_weight"], "bias": a["bias"]}
    layer.load_state_dict({name: values[name] for name in layer.state_dict()})
    return layer, a["x"]


def run(call, dtype, *tensors):
    """The output and the gradients of all tensors, everything in one dtype."""
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    out = call(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layer_is_its_reference(dtype, bias):
    layer, x = layer_and_input(dtype, bias)
    parameters = dict(layer.named_parameters())

    def ours(x, *values):
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), x)

    def reference(x, *values):
        p = {"bias": None, **dict(zip(parameters, values, strict=True))}
        return bit_linear(x, p["weight"], p["bias"], p["norm_weight"], layer.eps)

    given = x, *parameters.values()
    assert_within_rounding(run(ours, dtype, *given), lambda: run(reference, torch.float64, *given))


@with_compiler
def test_layer_agrees_with_transformers(bitnet):
    layer, x = layer_and_input(torch.float32)
    theirs = bitnet.AutoBitLinear(45, 20, bias=False, online_quant=True, use_rms_norm=True)
    given = x, layer.weight, layer.norm_weight
    for module, norm in ((layer, "norm_weight"), (theirs, "rms_norm.weight")):

        def call(x, w, n, module=module, norm=norm):
            return torch.func.functional_call(module, {"weight": w, norm: n}, x)

        def exact(x, w, n):
            return bit_linear(x, w, None, n, 1e-6)

        assert_within_rounding(run(call, x.dtype, *given), lambda: run(exact, torch.float64, *given), norm)


def test_gradients_go_straight_through():
    layer, x = layer_and_input(torch.float64)
    out, grad = layer(x.requires_grad_()), normal(2, 9, 20)
    found = torch.autograd.grad(out, (x, layer.weight, layer.norm_weight), grad)

    g = layer.norm_weight.detach().requires_grad_()
    n = F.rms_norm(x, (45,), g, layer.eps)
    step = n.detach().abs().amax(-1, keepdim=True) / 127
    rounded = (n.detach() / step).round() * step
    weight = layer.pack().unpack(torch.float64) * layer.weight.detach().abs().mean()
    assert_same(out, rounded @ weight.T)
    to_input, to_norm = torch.autograd.grad(n, (x, g), grad @ weight)
    assert_same(found[0], to_input, "input")
    assert_same(found[1], grad.flatten(0, 1).T @ rounded.flatten(0, 1), "weight")
    assert_same(found[2], to_norm, "norm")


def test_a_constant_input_or_weight_has_no_gradient():
    layer, x = BitLinear(8, 4), torch.randn(3, 8)
    layer.requires_grad_(False)
    assert not layer(x).requires_grad
    assert torch.autograd.grad(layer(x.requires_grad_()).sum(), x)[0].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_layer_computes_the_same_bits(bias, dtype):
    layer, x = BitLinear(45, 20, bias=bias).to(dtype), torch.randn(3, 7, 45).to(dtype)
    packed = ternary_linear(x, layer.pack(), layer.bias, layer.norm_weight, eps=layer.eps)
    assert torch.equal(packed, layer(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_sums_of_integers_do_not_overflow_in_half_precision(dtype):
    layer = BitLinear(1024, 2).to(dtype)
    torch.nn.init.ones_(layer.weight)
    x = torch.ones(1, 1024, dtype=dtype, requires_grad=True)
    out = layer(x)  # 1024 times 127 is far above 65504
    out.sum().backward()
    assert out.dtype == dtype
    assert torch.equal(out.float().round(), torch.full((1, 2), 1024.0))
    assert torch.isfinite(x.grad).all()


def test_backward_keeps_bytes():
    layer, x, kept = BitLinear(64, 96), torch.randn(50, 64, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    # Of the floats, only the input, which the layer before keeps alive anyhow.
    sizes = {(t.dtype, tuple(t.shape)) for t in kept if t.numel() > 100}
    assert sizes == {(torch.float32, (50, 64)), (torch.int8, (50, 64)), (torch.int8, (96, 64))}


def test_autocast_trains():
    layer, x = BitLinear(32, 16), torch.randn(4, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    out.sum().backward()
    assert_within_budget(out.bfloat16(), layer(x).bfloat16(), layer(x).double(), "output")
    assert layer.weight.grad.dtype == torch.float32


@forms
def test_lora_adapts_ternary_layers(form):
    model, x = MLGRU(16, form=form), torch.randn(2, 5, 16)
    before = model(x)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["i_proj", "o_proj"]))
    assert torch.equal(adapted(x), before)
    adapted(x).sum().backward()
    trained = {n for n, p in adapted.named_parameters() if p.requires_grad}
    assert len(trained) == 4
    assert all("lora_" in n for n in trained)


# The token mixer


def plain_mlgru(m, x, form, bound=None):
    """The equations, one token after the other."""
    h = torch.zeros(len(x), m.i_proj.out_features, dtype=x.dtype)
    outs = []
    for x_t in x.unbind(1):
        f = 1 / (1 + torch.exp(-m.f_proj(x_t)))
        if bound is not None:
            f = bound + (1 - bound) * f
        c = m.i_proj(x_t) / (1 + torch.exp(-m.i_proj(x_t)))
        h = f * h + (1 - f) * c
        g = m.g_proj(x_t)
        if form == "official":
            g = g / (g.square().mean(-1, keepdim=True) + m.gate_norm.eps).sqrt() * m.gate_norm.weight
            outs.append(m.o_proj(g * h / (1 + torch.exp(-h))))
        else:
            outs.append(m.o_proj(h / (1 + torch.exp(-g))))
    return torch.stack(outs, 1), h


def bold(module):
    """Gives every parameter values that show: first weights are small, norms one and biases zero."""
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    return module.double()


@forms
@linears
@both
def test_mlgru_is_the_plain_loop(form, linear, impl):
    m = bold(MLGRU(16, expand=2, form=form, linear=linear, impl=impl))
    x, bound = normal(2, 11, 16), torch.rand(32, dtype=torch.float64)
    for lower in (None, bound):
        out, last = m(x, return_last_state=True, lower_bound=lower)
        expected, state = plain_mlgru(m, x, form, lower)
        assert_same(out, expected, "output")
        assert_same(last, state, "state")
        assert torch.equal(m(x, lower_bound=lower), out)


def test_mlgru_alone_is_initialised():
    m = MLGRU(64, form="paper")
    for p in (m.i_proj, m.f_proj, m.g_proj, m.o_proj):
        assert XAVIER * 0.9 < p.weight.abs().max() * 64**0.5 <= XAVIER
        assert not p.bias.any()
        assert torch.equal(p.norm_weight, ones(64))
    official = MLGRU(64)
    assert torch.equal(official.gate_norm.weight, ones(64))
    assert m.gate_norm is official.o_proj.bias is None


@linears
def test_steps_are_the_whole(linear):
    m = bold(MLGRU(16, linear=linear))
    x, bound = normal(2, 9, 16), torch.rand(16, dtype=torch.float64)
    whole, last = m(x, return_last_state=True, lower_bound=bound)
    state, outs = None, []
    for x_t in x.unbind(1):
        out, state = m.step(x_t, state, bound)
        outs.append(out)
    assert_same(torch.stack(outs, 1), whole)
    assert_same(state, last)


def test_states_of_low_precision_are_float32():
    m = MLGRU(16, linear=nn.Linear).bfloat16()
    out, state = m(torch.randn(2, 5, 16).bfloat16(), return_last_state=True)
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    bound = MLGRUMixer.build_shared(DIMS, MLGRUConfig(), nn.Linear).bfloat16()(1)
    out, state = m.step(out[:, 0], state, bound)
    assert (out.dtype, state.dtype) == (torch.bfloat16, torch.float32)


# The mixer in the model


def mixer(**options):
    options = MLGRUConfig(**options)
    made = bold(MLGRUMixer(DIMS, options, 2, BitLinear))
    shared = MLGRUMixer.build_shared(DIMS, options, BitLinear)
    return made, nn.ModuleDict({} if shared is None else {"mlgru": bold(shared)})


def context(shared, length, past=0, **padding):
    return Context(places=torch.arange(past, past + length)[None], past=past, shared=shared, **padding)


@forms
@pytest.mark.parametrize("lower_bounds", [True, False])
@pytest.mark.parametrize("sizes", [(1,) * 12, (5, 7), (11, 1), (1, 11), (4, 1, 7)])
def test_parts_are_the_whole(form, lower_bounds, sizes):
    m, shared = mixer(form=form, lower_bounds=lower_bounds)
    x, state, outs, past = normal(2, 12, 16), StateLayer(), [], 0
    for part in x.split(sizes, 1):
        outs.append(m(part, context(shared, part.shape[1], past), state))
        past += part.shape[1]
    assert_same(torch.cat(outs, 1), m(x, context(shared, 12)))
    assert state.get("h").shape == (2, 16)


def test_lower_bounds_reach_the_gates():
    m, shared = mixer()
    x = normal(2, 6, 16)
    out = m(x, context(shared, 6))
    assert_same(out, m.mlgru(x, lower_bound=shared["mlgru"](2)))
    out.sum().backward()
    assert shared["mlgru"].weight.grad.abs().sum() > 0


def test_padding_is_as_if_it_were_not_there():
    m, shared = mixer()
    x = normal(3, 9, 16)
    starts, ends = torch.tensor([0, 4, 8]), torch.tensor([9, 7, 9])
    state = StateLayer()
    padded = m(x, context(shared, 9, starts=starts, ends=ends), state)
    for row, (a, b) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        alone = StateLayer()
        out = m(x[row : row + 1, a:b], context(shared, b - a), alone)
        assert_same(padded[row : row + 1, a:b], out, f"row {row}")
        assert_same(state.get("h")[row : row + 1], alone.get("h"), f"state of row {row}")


def test_the_future_is_not_seen():
    m, shared = mixer()
    x = normal(2, 8, 16)
    out, changed = (m(v, context(shared, 8)) for v in (x, torch.cat([x[:, :5], normal(2, 3, 16)], 1)))
    assert_same(changed[:, :5], out[:, :5])
    assert not torch.equal(changed[:, 5:], out[:, 5:])


def test_lower_bounds_begin_at_zero_and_rise():
    assert MLGRUMixer.build_shared(DIMS, MLGRUConfig(lower_bounds=False), BitLinear) is None
    bounds = MLGRUMixer.build_shared(DIMS, MLGRUConfig(expand=2), BitLinear).double()
    every = torch.stack([bounds(n) for n in range(4)])
    assert torch.equal(every, torch.arange(4)[:, None].expand(4, 32) / 4)
    nn.init.normal_(bounds.weight, std=3)
    every = torch.stack([bounds(n) for n in range(4)])
    assert not every[0].any()
    assert (every.diff(dim=0) > 0).all()
    # Softmax over layers, cumulative sum, minus the first row.
    p = bounds.weight.softmax(0)
    assert_same(every, (p.cumsum(0) - p[0]))


def test_a_ternary_model_comes_back_from_disk(tmp_path):
    sizes = {"vocab_size": 31, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 40}
    model = NonetForCausalLM(NonetConfig(pattern="G", linear="ternary", **sizes)).eval()
    for name, p in model.named_parameters():
        if "norm" in name:
            assert (p == 1).all()
        elif "mlgru" in name and "proj" in name:
            assert XAVIER * 0.9 < p.abs().max() * 32**0.5 <= XAVIER
    bold(model).float()
    ids = torch.arange(20)[None]
    model.save_pretrained(tmp_path)
    assert torch.equal(NonetForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


# The channel mixer


@pytest.mark.parametrize(("width", "inner"), [(96, 256), (97, 512), (128, 512), (1024, 2816)])
def test_width_of_the_channel_mixer(width, inner):
    with torch.device("meta"):
        mixer = GatedChannelMixer(width)
    assert mixer.gate_proj.weight.shape == (2 * inner, width)
    assert mixer.down_proj.weight.shape == (width, inner)


def test_channel_mixer_is_its_formula():
    m, x = bold(GatedChannelMixer(8)), normal(2, 3, 8)
    gate, up = m.gate_proj(x).split(256, dim=-1)
    assert_same(m(x), m.down_proj(gate / (1 + torch.exp(-gate)) * up))


# Wrong use


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda w: pack_ternary(ones(3)), r"weight must have the shape \(out, in\)"),
        (lambda w: pack_ternary(ones(3, 3).long()), "weight must be of float64, float32"),
        (lambda w: ternary_linear(ones(2, 3), w), r"x must .* in=4\).*\(2, 3\)"),
        (lambda w: ternary_linear(ones(4), w, ones(4)), "bias must .*out=2"),
        (lambda w: ternary_linear(ones(4), w, norm_weight=ones(2)), "norm_weight must .*in=4"),
        (lambda w: ternary_linear(ones(4), w, ones(2).double()), "bias must match x"),
        (lambda w: ternary_linear(ones(4), w, eps=0.0), "eps must be above zero"),
        (
            lambda w: ternary_linear(ones(4, device="meta"), w),
            "packed must match x, which is torch.float32 on meta; got cpu",
        ),
        (lambda w: MLGRUConfig(form="gated"), "form='gated' is not known; choose from official, paper"),
        (lambda w: MLGRUConfig(expand=0), "expand must be above zero"),
        (lambda w: MLGRU(8, form="gated"), "form='gated'"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(pack_ternary(ones(2, 4)))
