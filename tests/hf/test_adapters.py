"""Adapters as directories: what PEFT reads, what is read of PEFT's, and what is refused."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from nonet.hf import load_adapter, save_adapter
from nonet.lora import LoraConfig, add_lora, select_lora
from nonet.prompt import PrefixTuning, PromptTuning, PTuning, add_prompt
from nonet.testing import assert_within_rounding

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def fresh():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config).eval()


def adapted(kind, model):
    """The model with an adapter that is not at its start any more."""
    if isinstance(kind, LoraConfig):
        add_lora(model, kind)
    else:
        add_prompt(model, kind)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


KINDS = [LoraConfig(rank=4), PromptTuning(length=3), PrefixTuning(length=3), PTuning(length=3)]


@pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")  # by PEFT
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_the_directory_is_read_by_peft_and_here(kind, tmp_path):
    model = adapted(kind, fresh())
    expected = model(IDS).logits
    wide = adapted(kind, fresh()).double()
    assert save_adapter(model, tmp_path / "a", about={"seed": 7}) == tmp_path / "a"
    names = {f.name for f in (tmp_path / "a").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md"}
    assert "| seed | 7 |" in (tmp_path / "a" / "README.md").read_text()
    assert torch.equal(load_adapter(fresh(), tmp_path / "a").eval()(IDS).logits, expected)
    theirs = peft.PeftModel.from_pretrained(fresh(), tmp_path / "a").eval()
    found = theirs(IDS).logits[:, -IDS.shape[1] :]
    assert_within_rounding(found, lambda: wide(IDS).logits, "logits in PEFT")


def test_an_adapter_is_replaced_whole(tmp_path):
    save_adapter(adapted(LoraConfig(rank=4), fresh()), tmp_path)
    save_adapter(adapted(PromptTuning(length=3), fresh()), tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "PROMPT_TUNING"
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]
    load_adapter(fresh(), tmp_path)


# Several adapters on one model.


def both(first, second):
    """The model with two adapters, and what it computes with both of them."""
    model = adapted(second, adapted(first, fresh()))
    return model, model(IDS).logits


PAIRS = [(LoraConfig(rank=2), kind) for kind in KINDS[1:]]
PAIRS += [(second, first) for first, second in PAIRS]


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=lambda kind: type(kind).__name__)
def test_lora_and_a_prompt_are_kept_in_a_directory_each(first, second, tmp_path):
    model, expected = both(first, second)
    with pytest.raises(
        ValueError, match="model has 2 adapters, 'default', 'prompt', and a directory holds one"
    ):
        save_adapter(model, tmp_path / "x")
    assert not (tmp_path / "x").exists()
    for name in ("default", "prompt"):
        save_adapter(model, tmp_path / name, name)
    assert torch.equal(model(IDS).logits, expected)
    assert model.nonet_lora.selected == "default"
    for names in (("default", "prompt"), ("prompt", "default")):
        loaded = fresh()
        for name in names:
            load_adapter(loaded, tmp_path / name)
        assert torch.equal(loaded.eval()(IDS).logits, expected)
    kinds = {n: json.loads((tmp_path / n / "adapter_config.json").read_text()) for n in ("default", "prompt")}
    assert kinds["default"]["peft_type"] == "LORA"
    assert not [n for n in kinds["default"]["target_modules"] if "prompt" in n or n.isdigit()]
    assert not any(
        "soft_prompt" in key for key in load_file(tmp_path / "default" / "adapter_model.safetensors")
    )


def test_the_only_adapter_needs_no_name(tmp_path):
    model = add_lora(fresh(), LoraConfig(rank=2), "mine")
    save_adapter(model, tmp_path / "mine")
    with pytest.raises(ValueError, match="name='default' is no adapter of the model; it has 'mine'"):
        save_adapter(model, tmp_path / "x", "default")
    add_lora(model, LoraConfig(rank=3), "other")
    with pytest.raises(ValueError, match="model has 2 adapters, 'mine', 'other', and a directory holds one"):
        save_adapter(model, tmp_path / "x")
    save_adapter(model, tmp_path / "other", "other")
    assert json.loads((tmp_path / "other" / "adapter_config.json").read_text())["r"] == 3
    assert json.loads((tmp_path / "mine" / "adapter_config.json").read_text())["r"] == 2
    with pytest.raises(ValueError, match="name='prompt' is what a model's trained prompt is called"):
        load_adapter(fresh(), tmp_path / "mine", "prompt")


def test_a_head_trained_beside_a_prompt_is_no_part_of_another_adapter(tmp_path):
    model = adapted(
        LoraConfig(rank=2, bias="all", full=("lm_head",)), adapted(PromptTuning(length=3), fresh())
    )
    save_adapter(model, tmp_path, "prompt")
    assert model.lm_head.weight.requires_grad
    with select_lora(model, None):
        model.lm_head.requires_grad_(True)
        with pytest.raises(ValueError, match=r"trained beside the prompt: lm_head\.weight"):
            save_adapter(model, tmp_path, "prompt")


# What is refused.


def test_what_is_no_adapter_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="model has no adapter"):
        save_adapter(fresh(), tmp_path)
    with pytest.raises(ValueError, match=r"holds no adapter_config\.json"):
        load_adapter(fresh(), tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="a pickle is never opened"):
        load_adapter(fresh(), tmp_path)
    save_adapter(adapted(LoraConfig(rank=4), fresh()), tmp_path)
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "IA3"}')
    with pytest.raises(ValueError, match=r"peft_type='IA3'.* is not supported; choose from LORA"):
        load_adapter(fresh(), tmp_path)


FIELDS = {
    "r": ["8", 0, -1, 2.5, True, [8], 10**6, 10**30],
    "lora_alpha": ["8", 0, float("nan"), float("inf"), True],
    "lora_dropout": ["0.1", 1.0, -0.1],
    "target_modules": [3, [3], {}, ["nothing"], "nothing", "(", "(a*)*b(?<=x)", "((.*)*)*!"],
    "rank_pattern": [[8], {"q_proj": "8"}, {"(": 8}, {"q_proj": 10**6}, {"q_proj": 0}],
    "alpha_pattern": [3, {"q_proj": None}],
    "bias": ["some", 1],
    "modules_to_save": ["lm_head", [1], {"lm_head": 1}, 5],
    "use_dora": ["yes", 1],
    "init_lora_weights": [3, ["gaussian"]],
    "peft_type": [None, 3, ["LORA"]],
}


@pytest.mark.parametrize(
    ("field", "value"), [(f, v) for f, values in FIELDS.items() for v in values], ids=repr
)
def test_a_field_of_a_wrong_type_or_size_is_one_error_that_names_the_file(field, value, tmp_path):
    save_adapter(adapted(LoraConfig(rank=4), fresh()), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    model = fresh()
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_adapter(model, tmp_path)
    assert not hasattr(model, "nonet_lora")
    assert torch.equal(model(IDS).logits, fresh()(IDS).logits)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: type(kind).__name__)
def test_a_file_that_cannot_be_read_is_named(kind, tmp_path):
    save_adapter(adapted(kind, fresh()), tmp_path)
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    whole, text = weights.read_bytes(), config.read_text()
    for content in (b"", whole[:20], whole[:-4]):
        weights.write_bytes(content)
        with pytest.raises(
            ValueError, match=f"{weights} is no whole safetensors file.*write or copy the file"
        ):
            load_adapter(fresh(), tmp_path)
    weights.write_bytes(whole)
    for content, why in (("{", "is no JSON"), ("[]", "must hold a JSON object"), (text[:-3], "is no JSON")):
        config.write_text(content)
        with pytest.raises(ValueError, match=f"{config} {why}"):
            load_adapter(fresh(), tmp_path)
    config.write_text(text)
    save_file({k: v.to(torch.int8) for k, v in load_file(weights).items()}, weights)
    with pytest.raises(ValueError, match=rf"{tmp_path}: .*must be of a floating dtype; got torch\.int8"):
        load_adapter(fresh(), tmp_path)


def test_sizes_are_compared_before_anything_is_made(tmp_path, monkeypatch):
    """A rank of a million would be gigabytes of factors."""
    save_adapter(adapted(LoraConfig(rank=4), fresh()), tmp_path)
    path, made = tmp_path / "adapter_config.json", []
    monkeypatch.setattr("nonet.lora.adapt.make_factors", lambda *args: made.append(args))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 10**6}))
    with pytest.raises(ValueError, match=r"has the shape \(4, 64\); the model needs \(1000000, 64\)"):
        load_adapter(fresh(), tmp_path)
    assert not made
