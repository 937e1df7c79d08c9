"""What accelerate changes, what it leaves and says, and that restore undoes it."""

import copy
import importlib
import subprocess
import sys

import accelerate as hooks
import families
import peft
import pytest
import torch
from hf_models import KINDS, assert_same, cached, make, mixers, pair, tokens
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2Model,
    MambaForCausalLM,
)
from transformers.models.mamba import modeling_mamba

import nonet
from nonet.ecosystem import returned_cache
from nonet.select import UnsupportedError
from nonet.testing import assert_within_rounding

every_kind = pytest.mark.parametrize("kind", KINDS)
NAMES = ("backbone.layers.0.mixer", "backbone.layers.1.mixer")


def _logits(model):
    with torch.no_grad():
        return model(tokens(), use_cache=False).logits


def _reasons(model):
    return dict(model.nonet_report.left)


def _inside(model):
    """Everything that an object holds, and of which class it is."""
    return [(type(m), {k: v for k, v in m.__dict__.items() if k != "nonet_report"}) for m in model.modules()]


@every_kind
def test_the_report_says_what_changed_and_what_serves(kind, capsys):
    model = make(kind)
    assert nonet.accelerate(model) is model
    report = model.nonet_report
    assert report.changed == NAMES
    assert report.left == ()
    assert [op.split()[0] for op, _, _ in report.implementations] == [
        "selective_scan",
        "causal_conv1d",
        "mamba_step",
    ]
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"{report}\n"
    assert str(report).startswith(f"nonet: put on nonet's operations: {NAMES[0]}, {NAMES[1]}\n")
    for op, chosen, why in report.implementations:
        assert f"nonet: {op}: {chosen} ({why})" in str(report)


@every_kind
def test_classes_and_everything_else_are_what_they_were_once_restored(kind):
    model = make(kind)
    before, state = _inside(model), {k: v.clone() for k, v in model.state_dict().items()}
    logits, shown = _logits(model), repr(model)
    nonet.accelerate(model)
    own = type(mixers(make(kind))[0])
    for mixer in mixers(model):
        assert type(mixer) is not own
        assert isinstance(mixer, own)
        assert type(mixer).__name__ == own.__name__
    assert repr(model) == shown
    assert nonet.hf.restore(model) is model
    assert _inside(model) == before
    assert not hasattr(model, "nonet_report")
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)
    assert torch.equal(_logits(model), logits)


def test_a_second_call_changes_nothing_and_says_so(capsys):
    model = nonet.accelerate(make())
    before = _inside(model)
    nonet.accelerate(model)
    assert _inside(model) == before
    assert model.nonet_report.changed == ()
    assert set(_reasons(model)) == set(NAMES)
    said = capsys.readouterr().err
    assert "nonet: nothing changed\n" in said
    assert said.endswith("on nonet's operations already (impl='auto')\n")


def test_the_backbone_alone_and_a_wrapped_model_serve_as_well():
    model = make(dtype=torch.float64)
    logits = _logits(model)
    wrapped = nn.Sequential(model)
    nonet.accelerate(wrapped)
    assert wrapped.nonet_report.changed == tuple(f"0.{name}" for name in NAMES)
    assert_same(_logits(model), logits)
    nonet.hf.restore(model)
    nonet.accelerate(model.backbone)
    assert model.backbone.nonet_report.changed == ("layers.0.mixer", "layers.1.mixer")
    assert_same(_logits(model), logits)
    nonet.hf.restore(model)
    assert not hasattr(model.backbone, "nonet_report")


@every_kind
def test_a_checkpoint_is_the_same_file(kind, tmp_path):
    model = make(kind)
    model.save_pretrained(tmp_path / "before")
    nonet.accelerate(model).save_pretrained(tmp_path / "after")
    files = sorted(path.name for path in (tmp_path / "before").iterdir())
    assert {"config.json", "model.safetensors"} <= set(files)
    assert files == sorted(path.name for path in (tmp_path / "after").iterdir())
    for name in files:
        assert (tmp_path / "before" / name).read_bytes() == (tmp_path / "after" / name).read_bytes(), name
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "after")
    assert type(mixers(loaded)[0]) is type(mixers(make(kind))[0])
    assert torch.equal(_logits(nonet.accelerate(loaded)), _logits(model))


def test_weights_are_loaded_into_a_model_that_was_accelerated():
    slow, other = make(dtype=torch.float64), nonet.accelerate(make(dtype=torch.float64, seed=5))
    other.load_state_dict(slow.state_dict())
    assert_same(_logits(other), _logits(slow))


def test_a_copy_is_independent():
    slow, fast = pair()
    twin = copy.deepcopy(fast)
    assert torch.equal(_logits(twin), _logits(fast))
    nonet.hf.restore(twin)
    assert torch.equal(_logits(twin), _logits(slow))
    assert fast.nonet_report.changed == NAMES
    assert type(mixers(fast)[0]) is not type(mixers(twin)[0])


def test_the_classes_are_found_by_their_names():
    for kind in KINDS:
        cls = type(mixers(pair(kind)[1])[0])
        assert getattr(importlib.import_module(cls.__module__), cls.__qualname__) is cls


@every_kind
@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch.compile does so itself
def test_it_compiles_to_one_graph(kind):
    _, model = pair(kind, num_hidden_layers=1)
    ids, mask = tokens(), torch.ones(2, 23, dtype=torch.long)
    mask[0, :5] = 0

    def results(model, run):
        model.zero_grad()
        run(ids, attention_mask=mask, labels=ids, use_cache=False).loss.backward()
        with torch.no_grad():
            cache = returned_cache(model(ids, attention_mask=mask, use_cache=True))
            after = run(ids[:, :1], **cached(cache)).logits
        return [after, *(weight.grad for weight in model.parameters())]

    found = results(model, torch.compile(model, backend="aot_eager", fullgraph=True))
    wide = copy.deepcopy(model).double()
    assert_within_rounding(found, lambda: results(wide, wide), "compiled")


class _Own(modeling_mamba.MambaMixer):
    def forward(self, hidden_states, **kwargs):
        return hidden_states


def test_a_class_of_the_users_own_is_left():
    model = make()
    model.backbone.layers[0].mixer.__class__ = _Own
    nonet.accelerate(model)
    assert type(model.backbone.layers[0].mixer) is _Own
    assert model.nonet_report.changed == NAMES[1:]
    assert "_Own is derived from Transformers' layer" in _reasons(model)[NAMES[0]]


def test_a_layer_with_hooks_of_accelerate_is_left_until_they_are_gone():
    model = make(dtype=torch.float64)
    logits, layer = _logits(model), model.backbone.layers[0].mixer
    hooks.hooks.add_hook_to_module(layer, hooks.hooks.AlignDevicesHook("cpu"))
    nonet.accelerate(model)
    assert model.nonet_report.changed == NAMES[1:]
    assert "forward pass was replaced on the object" in _reasons(model)[NAMES[0]]
    assert_same(_logits(model), logits)
    hooks.hooks.remove_hook_from_module(layer)
    nonet.accelerate(model)
    assert model.nonet_report.changed == NAMES[:1]
    assert layer.forward.__func__ is type(layer).forward
    assert_same(_logits(model), logits)


def test_weights_are_offloaded_after_accelerate():
    model = nonet.accelerate(make(dtype=torch.float64))
    ids = tokens()
    expected = model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    hooks.cpu_offload(model, execution_device="cpu")
    assert mixers(model)[0].conv1d.weight.device.type == "meta"
    assert torch.equal(model.generate(ids, max_new_tokens=5, min_new_tokens=5, do_sample=False), expected)
    with pytest.raises(ValueError, match=r"first remove the hooks of backbone\.layers\.0\.mixer"):
        nonet.hf.restore(model)
    hooks.hooks.remove_hook_from_submodules(model)
    nonet.hf.restore(model)
    assert type(mixers(model)[0]) is modeling_mamba.MambaMixer


class _Quantised(torch.Tensor):
    pass


@pytest.mark.parametrize("where", ["conv1d.weight", "dt_proj.weight"])
@pytest.mark.parametrize("how", ["integers", "subclass", "missing"])
def test_a_layer_whose_weights_cannot_be_read_is_left(where, how):
    model = make()
    part = mixers(model)[0].get_submodule(where.split(".")[0])
    weight = {
        "integers": nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False),
        "subclass": nn.Parameter(part.weight.detach().as_subclass(_Quantised)),
        "missing": None,
    }[how]
    part.weight = weight
    nonet.accelerate(model)
    assert model.nonet_report.changed == NAMES[1:]
    assert f"{where} is no plain tensor" in _reasons(model)[NAMES[0]]


class _Quantising(nn.Linear):
    def forward(self, x):
        return nn.functional.linear(x, self.weight.to(torch.float8_e4m3fn).to(x.dtype), self.bias)


def test_quantised_projections_are_called():
    model = make(dtype=torch.float64, use_bias=True)
    for mixer in mixers(model):
        for name in ("in_proj", "x_proj", "out_proj"):
            mixer.get_submodule(name).__class__ = _Quantising
    ids = tokens()
    expected = _logits(model)
    nonet.accelerate(model)
    assert model.nonet_report.changed == NAMES
    with torch.no_grad():
        before = model(ids[:, :-1], use_cache=True)
        after = model(ids[:, -1:], **cached(returned_cache(before)))
    assert_same(torch.cat([before.logits, after.logits], 1), expected)


@every_kind
@pytest.mark.parametrize("when", ["before", "after"])
def test_lora_learns_as_without_nonet(kind, when):
    grads, outs = [], []
    for fast in (False, True):
        model = make(kind, torch.float64)
        if fast and when == "before":
            nonet.accelerate(model)
        torch.manual_seed(3)
        config = peft.LoraConfig(target_modules=["in_proj", "x_proj"], init_lora_weights=False)
        model = peft.get_peft_model(model, config, autocast_adapter_dtype=False).train()
        if fast and when == "after":
            nonet.accelerate(model)
            assert model.nonet_report.changed == tuple(f"base_model.model.{name}" for name in NAMES)
        ids = tokens()
        model(ids, labels=ids).loss.backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
        outs.append(model.eval().generate(input_ids=ids, max_new_tokens=6, min_new_tokens=6, do_sample=False))
    assert len(grads[0]) == 8
    for name, grad in grads[0].items():
        assert_same(grads[1][name], grad, name)
    assert torch.equal(*outs)


def test_models_with_nothing_to_change_are_told_so(capsys):
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}
    attention = LlamaConfig(**sizes, num_attention_heads=2, intermediate_size=32)
    ours = nonet.NonetConfig(**sizes, num_attention_heads=2, intermediate_size=32, pattern="MF")
    newer = Mamba2Config(**sizes, num_heads=4, head_dim=16, expand=2, n_groups=1, state_size=8)
    for model, reason in (
        (LlamaForCausalLM(attention), "left LlamaForCausalLM: it holds no layer of Mamba or FalconMamba"),
        (nonet.NonetForCausalLM(ours), "it is nonet's own layer and needs nothing"),
        (Mamba2Model(newer), "Mamba2Mixer is a layer of Mamba-2, which nonet does not serve"),
        (nn.Linear(2, 2), "left Linear: it holds no layer of Mamba or FalconMamba"),
    ):
        before = _inside(model)
        nonet.accelerate(model)
        assert _inside(model) == before
        said = capsys.readouterr().err
        assert said.startswith("nonet: nothing changed\n")
        assert reason in said
        assert nonet.hf.restore(model) is model


def test_names_of_many_layers_are_shortened():
    report = nonet.accelerate(make(num_hidden_layers=5)).nonet_report
    assert len(report.changed) == 5
    assert f"{NAMES[0]}, ..., backbone.layers.4.mixer (5)\n" in str(report)


def test_what_is_no_module_is_refused():
    for function in (nonet.accelerate, nonet.hf.restore):
        with pytest.raises(TypeError, match=r"model must be an nn\.Module; got str"):
            function("state-spaces/mamba-130m-hf")


def test_an_implementation_can_be_named():
    slow, fast = make(dtype=torch.float64), make(dtype=torch.float64)
    nonet.accelerate(fast, impl="reference")
    assert {chosen for _, chosen, _ in fast.nonet_report.implementations} == {"reference"}
    assert_same(_logits(fast), _logits(slow))
    assert "impl='reference'" in str(nonet.accelerate(fast).nonet_report)
    before = _inside(slow)
    with pytest.raises(UnsupportedError, match="triton"):
        nonet.accelerate(slow, impl="triton")
    assert _inside(slow) == before


def test_a_device_that_nothing_serves_is_left():
    with torch.device("meta"):
        model = MambaForCausalLM(make().config)
    nonet.accelerate(model)
    assert model.nonet_report.changed == ()
    assert "torch does not run on meta" in _reasons(model)[NAMES[0]]


def test_kernels_that_transformers_would_use_itself_are_left(monkeypatch):
    with torch.device("meta"):
        model = MambaForCausalLM(make().config)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "mamba_ssm")
    nonet.accelerate(model)
    assert "mamba_ssm is installed" in _reasons(model)[NAMES[0]]


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import sys, nonet, nonet.hf; dir(nonet.hf); print({'torch', 'transformers'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"


@pytest.mark.parametrize(
    ("family", "kind", "reason"),
    [
        ("jamba", "JambaMambaMixer", "Mamba in a form of its own"),
        ("bamba", "BambaMixer", "Mamba-2"),
        ("falcon_h1", "FalconH1Mixer", "Mamba-2"),
        ("granitemoehybrid", "GraniteMoeHybridMambaLayer", "Mamba-2"),
        ("nemotron_h", "NemotronHMamba2Mixer", "Mamba-2"),
        ("qwen3_next", "Qwen3NextGatedDeltaNet", "another recurrence"),
    ],
)
def test_layers_of_other_models_are_called_what_they_are(family, kind, reason, capsys):
    model = nonet.accelerate(families.make(family))
    assert not model.nonet_report.changed
    assert all(f"{kind} is a layer of {reason}" in said for said in _reasons(model).values())
    assert f"{kind} is a layer of {reason}" in capsys.readouterr().err
