"""The card beside everything that a command writes holds code that loads it."""

import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import PreTrainedModel

from nonet.hf.card import HERE, card
from nonet.tandem import Tandem

BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FEW = ["--steps", "1", "--window", "32", "--batch", "1"]
COMMANDS = {
    "train": ["train", "--tokens", "32", "--window", "32", "--batch", "1"],
    "adapter": ["finetune", "MODEL", "--method", "lora", *FEW],
    "full": ["finetune", "MODEL", "--method", "full", *FEW],
    "tandem": ["tandem", "train", "MODEL", "--layers", "1", *FEW],
}


def code_of(directory):
    [block] = BLOCK.findall((directory / "README.md").read_text(encoding="utf-8"))
    assert HERE in block
    return block.replace(HERE, str(directory))


@pytest.fixture(scope="module")
def written(invoke, model, text, tmp_path_factory):
    """What each kind of command writes, as directories by kind."""
    place = tmp_path_factory.mktemp("written")
    for kind, command in COMMANDS.items():
        words = [str(model) if word == "MODEL" else word for word in command]
        done = invoke(*words, text, "--out", place / kind)
        assert done.exit_code == 0, done.exception
    return {kind: place / kind for kind in COMMANDS}


@pytest.mark.parametrize("kind", COMMANDS)
def test_the_code_of_every_card_loads_what_lies_beside_it(kind, written, model):
    names = {}
    exec(code_of(written[kind]), names)
    loaded = names["tandem"] if kind == "tandem" else names["model"]
    assert isinstance(loaded, Tandem if kind == "tandem" else PreTrainedModel)
    ids = names["tokenizer"]("fox", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert loaded(ids).logits.shape == (1, 3, 257)
    if kind == "adapter":
        assert loaded.nonet_lora is not None


def test_a_card_names_the_model_as_the_user_did(written, model, text, invoke, tmp_path, monkeypatch):
    about = json.loads((written["adapter"] / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(model)
    monkeypatch.chdir(model.parent)
    out = tmp_path / "out"
    done = invoke("finetune", model.name, text, *FEW, "--method", "prompt", "--out", out)
    assert done.exit_code == 0, done.exception
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == model.name
    assert f"| base model | {model.name} |" in (out / "README.md").read_text()


def test_importing_the_model_is_all_that_auto_classes_and_pipelines_need(written):
    code = (
        "import nonet.model\n"
        "from transformers import AutoModelForCausalLM, pipeline\n"
        f"print(type(AutoModelForCausalLM.from_pretrained({str(written['train'])!r})).__name__)\n"
        f"write = pipeline('text-generation', model={str(written['train'])!r}, device='cpu')\n"
        "print(len(write('fox', max_new_tokens=2)[0]['generated_text']) >= 3)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["NonetForCausalLM", "True"]


def test_a_value_never_breaks_the_table_of_a_card():
    text = card("title", {"pattern": "{text}\nIs it a|b? {blank}"}, "pass\n")
    assert "\n| pattern | {text} Is it a\\|b? {blank} |\n" in text
