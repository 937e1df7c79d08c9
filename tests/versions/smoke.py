"""What a user sees first of an installed nonet, run by the interpreter that it is installed in.

Needs what ``pip install .`` brings and nothing else: no pytest, no PEFT.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MambaConfig, MambaForCausalLM

import nonet
from nonet.hf import load_adapter, save_adapter
from nonet.lora import LoraConfig, add_lora
from nonet.prompt import PrefixTuning, PromptTuning, add_prompt
from nonet.registry import parts

SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
IDS = torch.randint(3, 61, (1, 12), generator=torch.Generator().manual_seed(0))
WAYS = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False, "pad_token_id": 0}


def own(pattern):
    torch.manual_seed(0)
    fields = {**SIZES, **HEADS, "initializer_range": 0.2}
    return nonet.NonetForCausalLM(nonet.NonetConfig(pattern=pattern, **fields)).eval()


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, initializer_range=0.2)).eval()


def a_cache_changes_no_token(model):
    assert torch.equal(model.generate(IDS, **WAYS), model.generate(IDS, use_cache=False, **WAYS))


def generation():
    for part in parts("mixer"):
        if part.causal:
            a_cache_changes_no_token(own(part.letter))


def acceleration():
    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(**SIZES)).eval()
    expected = model.generate(IDS, **WAYS)
    assert nonet.accelerate(model).nonet_report.changed
    assert torch.equal(model.generate(IDS, **WAYS), expected)
    a_cache_changes_no_token(model)


def adapters():
    configs = (LoraConfig(rank=2), PromptTuning(3, start="random"), PrefixTuning(3, start="random"))
    for config in configs:
        model = (add_lora if isinstance(config, LoraConfig) else add_prompt)(llama(), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1)
            a_cache_changes_no_token(model)
            with tempfile.TemporaryDirectory() as place:
                again = load_adapter(llama(), save_adapter(model, place))
            assert torch.equal(again(IDS).logits, model(IDS).logits)
            assert not torch.equal(again(IDS).logits, llama()(IDS).logits)


def commands():
    with tempfile.TemporaryDirectory() as place:
        text = Path(place) / "text.txt"
        text.write_text("".join(f"{i} and {i * i} are numbers, and so is {i**3}.\n" for i in range(4000)))
        run = ["--out", f"{place}/run", "--tokens", "512", "--window", "64", "--batch", "4"]
        for arguments in (
            ["methods"],
            ["doctor", "--json"],
            ["compare", str(text), "--quick", "--dry-run", "--out", f"{place}/compared"],
            ["train", str(text), *run],
            ["generate", f"{place}/run", "--prompt", "1 and", "--tokens", "8"],
        ):
            command = [sys.executable, "-P", "-m", "nonet", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, cwd=place)
            said = done.stdout + done.stderr
            assert done.returncode == 0, f"{arguments} failed:\n{said}"
            assert "deprecat" not in said.lower(), f"{arguments} warns:\n{said}"


if __name__ == "__main__":
    for check in (generation, acceleration, adapters, commands):
        check()
        sys.stdout.write(f"{check.__name__}: as it should be\n")
