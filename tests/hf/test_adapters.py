"""Adapters as directories: what PEFT reads, what is read of PEFT's, and what is refused."""

import json

import peft
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nonet.hf import load_adapter, save_adapter
from nonet.lora import LoraConfig, add_lora
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
