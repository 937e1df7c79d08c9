"""Models whose linear layers stream their weights: right, the same bits, else unchanged, and undone."""

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from nonet import native
from nonet.tandem import linear_rows, restore_weights, speculative_generate, stream_weights, weights
from nonet.tandem.weights import StreamedLinear
from nonet.testing import assert_within_rounding

pytestmark = pytest.mark.skipif(native.absence() is not None, reason="there is no C library")
V = 61


def llama(layers=2, tied=True, exact=True, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.15,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).eval()
    for p in model.parameters():
        p.data = p.data.bfloat16().float() if exact else p.data
    return model


def tokens(length=9, rows=1, seed=0):
    return torch.randint(3, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def layer(inputs=48, outputs=20, bias=True, dtype=torch.bfloat16, seed=0):
    """A float32 layer; with values of a dtype."""
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs, bias=bias).to(dtype).float().requires_grad_(False)


@pytest.fixture
def calls(monkeypatch):
    """Counts the calls of the kernel, and notes in which dtype each read its weight."""
    made, right = [], weights.linear_rows

    def noted(out, beginning, *rest):
        made.append(int.from_bytes(beginning[native.LINEAR.offsets["weight_dtype"] :][:8], "little"))
        right(out, beginning, *rest)

    monkeypatch.setattr(weights, "linear_rows", noted)
    return made


FLOAT32, BFLOAT16 = 0, 1


# What comes out.


@pytest.mark.parametrize("length", [1, 5, 16])
@pytest.mark.parametrize("exact", [True, False])
def test_logits_are_the_models_own(length, exact, calls):
    model, ids = llama(exact=exact), tokens(length)
    wide = copy.deepcopy(model).double()
    with torch.no_grad():
        found = stream_weights(model)(ids).logits
    assert calls == [BFLOAT16 if exact else FLOAT32] * (7 * 2 + 1)
    assert_within_rounding(found, lambda: wide(ids).logits, "logits")


def test_bfloat16_logits_are_as_good(calls):
    model, ids = llama(), tokens(7)
    wide = copy.deepcopy(model).double()
    with torch.no_grad():
        found = stream_weights(model.bfloat16())(ids).logits
    assert calls == [BFLOAT16] * 15
    assert found.dtype == torch.bfloat16
    assert_within_rounding(found, lambda: wide(ids).logits, "logits")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_token_among_others_gets_the_bits_that_it_gets_alone(dtype):
    linear = stream_weights(layer(96, 70)).to(dtype)
    x = torch.randn(1, 16, 96).to(dtype)
    together = linear(x)
    for t in range(16):
        assert torch.equal(linear(x[:, t : t + 1]), together[:, t : t + 1])
    assert torch.equal(linear(x[0, 3]), together[0, 3])
    assert torch.equal(linear(x.mT.contiguous().mT), together)


def test_what_is_generated_stays_the_same(calls):
    model, draft, ids = llama(3), llama(1, seed=1), tokens(6)
    options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": None}
    expected = model.generate(ids, **options)
    stream_weights(model)
    assert torch.equal(model.generate(ids, **options), expected)
    assert calls
    found = speculative_generate(model, draft, ids, max_new_tokens=12, eos_token_id=())
    assert torch.equal(found, expected)


# When the kernel is called.


def test_other_calls_are_the_layers_own(calls):
    linear, x = layer(), torch.randn(1, 17, 48)
    cases = {
        "more rows": lambda m: m(x),
        "no rows": lambda m: m(x[:, :0]),
        "autocast": lambda m: torch.autocast("cpu", torch.bfloat16)(m)(x[:, :3]),
        "a subclass": lambda m: m(nn.Parameter(x[:, :3])),
    }
    expected = {name: case(linear) for name, case in cases.items()}
    stream_weights(linear)
    assert all(torch.equal(case(linear), expected[name]) for name, case in cases.items())
    for wrong in (torch.randn(2, 24), torch.randn(3, 48).double()):
        with pytest.raises(RuntimeError):
            linear(wrong)
    assert not calls
    linear(x[:, :16])
    assert len(calls) == 1


def test_gradients_flow_through_the_layers_own_pass(calls):
    own, ids = llama(), tokens(8)
    model = stream_weights(copy.deepcopy(own))
    for m in (own, model):
        m(ids, labels=ids).loss.backward()
    assert not calls
    found = dict(model.named_parameters())
    assert all(torch.equal(found[name].grad, p.grad) for name, p in own.named_parameters())
    linear = stream_weights(layer())
    linear(torch.randn(2, 48))  # where nothing learns, gradients may be on
    assert len(calls) == 1
    assert linear(torch.randn(2, 48, requires_grad=True)).requires_grad
    assert len(calls) == 1


@pytest.mark.parametrize("name", ["float16", "float64"])
def test_dtypes_without_a_kernel_stay_on_torch(name, calls):
    linear, x = layer().to(getattr(torch, name)), torch.randn(2, 48).to(getattr(torch, name))
    expected = linear(x)
    assert torch.equal(stream_weights(linear)(x), expected)
    assert not calls


def test_weights_that_lie_across_stay_on_torch(calls):
    linear, x = layer(), torch.randn(2, 48)
    linear.weight = nn.Parameter(linear.weight.T.contiguous().T, requires_grad=False)
    expected = linear(x)
    assert torch.equal(stream_weights(linear)(x), expected)
    assert not calls


def test_weights_made_in_inference_mode_stay_on_torch(calls):
    with torch.inference_mode():
        linear, x = layer(), torch.randn(2, 48)
        expected = linear(x)
        assert torch.equal(stream_weights(linear)(x), expected)
    assert not calls
    stream_weights(usual := layer())
    with torch.inference_mode():
        assert usual(x).is_inference()
    assert len(calls) == 1


@pytest.mark.filterwarnings("ignore")  # torch's compiler and tracer warn of themselves
def test_graphs_hold_the_weight_and_not_its_copy():
    linear, x = stream_weights(layer()), torch.randn(3, 48)
    torch.compiler.reset()
    compiled = torch.compile(linear, fullgraph=True, backend="aot_eager")
    traced = torch.jit.trace(linear, x)
    for run in (compiled, traced):
        assert torch.equal(run(x), linear(x))
    before = linear(x)
    linear.weight.mul_(2)
    assert not torch.equal(linear(x), before)
    for run in (compiled, traced):
        assert torch.equal(run(x), linear(x))


# Copies.


def test_a_copy_is_read_where_it_is_exact_and_only_there(calls):
    x = torch.randn(2, 48)
    for dtype, read in ((torch.bfloat16, BFLOAT16), (torch.float32, FLOAT32)):
        linear = layer(dtype=dtype)
        expected = linear_rows(x, linear.weight, linear.bias)
        assert torch.equal(stream_weights(linear)(x), expected)
        assert calls[-1] == read
    broken = layer()
    broken.weight[3, 5] = torch.nan
    assert torch.equal(stream_weights(broken)(x).isnan().any(0), torch.arange(20) == 3)


CHANGES = {
    "written to": lambda m: m.weight.copy_(layer(seed=1).weight),
    "one number": lambda m: m.weight[2].fill_(0.125),
    "no longer exact": lambda m: m.weight.add_(1e-3),
    "other memory": lambda m: setattr(m.weight, "data", layer(seed=1).weight.data),
    "another parameter": lambda m: setattr(m, "weight", layer(seed=1).weight),
    "loaded": lambda m: m.load_state_dict(layer(seed=1).state_dict()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_weight_is_noticed(change, calls):
    linear, x = stream_weights(layer()), torch.randn(2, 48)
    before = linear(x)
    change(linear)
    after = linear(x)
    assert torch.equal(after, linear_rows(x, linear.weight, linear.bias))
    assert not torch.equal(after, before)
    assert len(calls) == 2


def test_a_weight_seen_otherwise_in_the_same_memory_is_noticed(calls):
    linear, x = stream_weights(layer(32, 32, bias=False)), torch.randn(2, 32)
    before = linear(x)
    whole = linear.weight.data
    linear.weight.data = whole.T
    assert torch.equal(linear(x), nn.functional.linear(x, whole.T))
    linear.weight.data = whole[:20]
    assert torch.equal(linear(x), before[:, :20])
    linear.weight.data = whole[:, :20]
    assert torch.equal(linear(x[:, :20]), linear_rows(x[:, :20], whole[:, :20]))
    with pytest.raises(RuntimeError):
        linear(x)
    assert len(calls) == 3


def test_a_bias_of_another_length_is_refused_as_ever(calls):
    linear = stream_weights(layer())
    linear.bias.data = linear.bias.data[:10]
    with pytest.raises(RuntimeError):
        linear(torch.randn(2, 48))
    assert not calls


def test_a_step_of_training_is_noticed():
    linear, x = stream_weights(layer()), torch.randn(2, 48)
    optimizer = torch.optim.AdamW(linear.requires_grad_(True).parameters(), lr=0.1)
    with torch.no_grad():
        before = linear(x)
    linear(x).sum().backward()
    optimizer.step()
    with torch.no_grad():
        after = linear(x)
        assert torch.equal(after, linear_rows(x, linear.weight, linear.bias))
    assert not torch.equal(after, before)


def test_another_weight_at_the_same_place_is_not_taken_for_the_old_one():
    linear, x = stream_weights(layer(512, 512)), torch.randn(2, 512)
    for seed in range(1, 5):
        linear.weight = None
        gc.collect()
        linear.weight = layer(512, 512, seed=seed).weight  # the allocator gives old memory out again
        assert torch.equal(linear(x), linear_rows(x, linear.weight, linear.bias))


def test_another_call_sees_what_was_changed_behind_its_back():
    linear, x = stream_weights(layer()), torch.randn(2, 48)
    linear.weight.data.mul_(2)
    assert torch.equal(stream_weights(linear)(x), linear_rows(x, linear.weight, linear.bias))


def test_layers_that_share_a_weight_share_its_copy():
    first, second, other = layer(bias=False), layer(bias=False), layer(bias=False)
    second.weight = first.weight
    stream_weights(nn.ModuleList([first, second, other]))
    assert first.nonet_copy is second.nonet_copy is not other.nonet_copy
    x = torch.randn(1, 48)
    assert torch.equal(first(x), second(x))


def test_the_head_may_share_its_weight_with_the_embedding(calls):
    model = stream_weights(llama(tied=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert type(model.lm_head) is StreamedLinear
    with torch.no_grad():
        before = model(tokens(3)).logits
        model.model.embed_tokens.weight.mul_(2)
        after = model(tokens(3)).logits
    assert not torch.equal(after, before)
    assert model.lm_head.weight is model.model.embed_tokens.weight


# What stays.


def test_nothing_else_of_the_model_changes(tmp_path):
    own = llama()
    model = stream_weights(copy.deepcopy(own))
    assert (model.dtype, model.device, str(model.config)) == (own.dtype, own.device, str(own.config))
    assert list(model.state_dict()) == list(own.state_dict())
    assert [name for name, _ in model.named_buffers()] == [name for name, _ in own.named_buffers()]
    assert model.num_parameters() == own.num_parameters()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert all(type(m) is not StreamedLinear for m in loaded.modules())
    with torch.no_grad():
        assert torch.equal(loaded(tokens()).logits, own(tokens()).logits)


def test_models_can_be_copied_and_pickled():
    model, ids = stream_weights(llama()), tokens(5)
    file = io.BytesIO()
    torch.save(model, file)
    assert file.tell() < 1.5 * sum(4 * p.numel() for p in model.parameters())
    twin = copy.deepcopy(model)
    assert twin.lm_head.nonet_copy is not model.lm_head.nonet_copy
    with torch.no_grad():
        expected = model(ids).logits
        assert torch.equal(twin(ids).logits, expected)
        twin.lm_head.weight.mul_(2)
        assert not torch.equal(twin(ids).logits, expected)
        assert torch.equal(model(ids).logits, expected)
    assert type(twin.lm_head) is StreamedLinear


def test_it_can_be_undone_and_done_again():
    model, ids = llama(), tokens(6)
    classes = [type(m) for m in model.modules()]
    with torch.no_grad():
        own = model(ids).logits
        streamed = stream_weights(model)(ids).logits
        assert torch.equal(stream_weights(model)(ids).logits, streamed)
        copies = [weakref.ref(m.nonet_copy) for m in model.modules() if type(m) is StreamedLinear]
        assert restore_weights(model) is model
        assert torch.equal(model(ids).logits, own)
        gc.collect()
        assert len(copies) == 15
        assert not any(kept() for kept in copies)
        assert [type(m) for m in model.modules()] == classes
        assert not any("nonet_copy" in vars(m) for m in model.modules())
        assert torch.equal(restore_weights(model)(ids).logits, own)
        assert torch.equal(stream_weights(model)(ids).logits, streamed)


class Derived(nn.Linear):
    """A layer that may compute something else."""


def test_other_layers_are_left_alone():
    hooked, normed = layer(), nn.utils.parametrizations.weight_norm(layer())
    hooked.forward = hooked.forward
    model = nn.ModuleList([layer(), Derived(3, 3), nn.Linear(3, 3, device="meta"), hooked, normed, nn.ReLU()])
    classes = [type(m) for m in model]
    stream_weights(model)
    assert [type(m) for m in model] == [StreamedLinear, *classes[1:]]


def test_hooks_are_called():
    linear, seen = layer(), []
    linear.register_forward_hook(lambda m, args, out: seen.append(out))
    assert stream_weights(linear)(torch.randn(2, 48)) is seen[0]


def test_a_wrapped_layer_is_named():
    model = stream_weights(nn.Sequential(layer()))
    model[0].forward = model[0].forward
    with pytest.raises(ValueError, match="first remove the hooks of 0, which hold nonet's forward pass"):
        restore_weights(model)


@pytest.mark.parametrize("function", [stream_weights, restore_weights])
def test_other_things_than_modules_are_refused(function):
    with pytest.raises(TypeError, match=r"model must be an nn.Module; got dict"):
        function({})


def test_without_the_library_a_model_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(native, "absence", lambda: "it was not built")
    linear = layer()
    assert type(stream_weights(linear)) is nn.Linear
