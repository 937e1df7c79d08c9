"""``nonet finetune`` as a person runs it: text, answers and labels, adapters that load again, resuming."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging
from typer.testing import CliRunner

from nonet.cli import app
from nonet.data import byte_tokenizer
from nonet.hf import load_adapter, load_pretrained

STEPS = ["--steps", "4", "--window", "48", "--batch", "2", "--json"]


@pytest.fixture(autouse=True)
def _as_it_was():
    """Gives back what a command sets for its process, which here is the tests' own."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def run(*arguments):
    """Runs a command in this process: starting one takes longer than all else here."""
    return CliRunner().invoke(app, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with a tiny model and a tokenizer of bytes."""
    place = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=256,
        pad_token_id=256,
    )
    LlamaForCausalLM(config).save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the three kinds of data."""
    place = tmp_path_factory.mktemp("data")
    (place / "text.txt").write_text("".join(f"line {i}: the quick brown fox\n" for i in range(400)))
    answers = [{"prompt": f"{i} and one more: ", "completion": f"{i + 1}"} for i in range(40)]
    labels = [
        {"text": f"{'cat' if i % 2 else 'dog'} {i}", "label": f"{'miau' if i % 2 else 'wuff'}"}
        for i in range(40)
    ]
    for name, rows in (("answers.jsonl", answers), ("labels.jsonl", labels)):
        (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


@pytest.mark.parametrize(
    ("method", "source"),
    [
        ("lora", "text.txt"),
        ("dora", "answers.jsonl"),
        ("prompt", "labels.jsonl"),
        ("prefix", "text.txt"),
        ("ptuning", "answers.jsonl"),
    ],
)
def test_what_was_learned_is_an_adapter_that_loads_again(method, source, model, data, tmp_path):
    out = tmp_path / "out"
    done = run("finetune", model, data / source, "--method", method, "--out", out, *STEPS)
    assert done.exit_code == 0, done.exception
    figures = json.loads(done.stdout)
    measured = {"text.txt": "bits_per_byte", "answers.jsonl": "nats_per_token", "labels.jsonl": "accuracy"}[
        source
    ]
    assert figures[measured] >= 0
    assert figures[f"{measured}_before"] >= 0
    assert {f.name for f in out.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "README.md",
    }
    card = (out / "README.md").read_text()
    assert f"| {measured} | {figures[measured]} |" in card
    assert "| seed | 0 |" in card
    base, _ = load_pretrained(model)
    ids = torch.tensor([list(b"the quick")])
    before = base(ids).logits
    assert not torch.equal(load_adapter(base, out)(ids).logits, before)
    written = run("generate", model, "--adapter", out, "--prompt", "the", "--tokens", "4", "--json")
    assert written.exit_code == 0, written.exception
    assert json.loads(written.stdout)["tokens"] >= 1


@pytest.mark.parametrize(("method", "source"), [("full", "text.txt"), ("pet", "labels.jsonl")])
def test_whole_models_are_written_whole(method, source, model, data, tmp_path):
    out = tmp_path / "out"
    done = run("finetune", model, data / source, "--method", method, "--out", out, *STEPS)
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["share_of_parameters"] == 1
    tuned, _ = load_pretrained(out)
    base, _ = load_pretrained(model)
    assert not torch.equal(tuned.lm_head.weight, base.lm_head.weight)


def test_pet_has_examples_of_its_own(model, tmp_path):
    out = tmp_path / "out"
    command = ["finetune", model, "--method", "pet", "--few", "10", "--out", out, *STEPS, "--window", "64"]
    done = run(*command)
    assert done.exit_code == 0, done.exception
    assert (
        "| labels | asyncio, email, logging, multiprocessing, unittest |" in (out / "README.md").read_text()
    )


def test_a_killed_training_continues_to_the_same_adapter(model, data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = ["finetune", model, data / "text.txt", "--steps", "600", "--window", "48", "--batch", "2"]
    assert run(*command, "--out", whole).exit_code == 0
    started = [sys.executable, "-m", "nonet", *map(str, command), "--out", str(parts)]
    with subprocess.Popen(started, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("step 60 of 600:"):
                break
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode == 3
    assert (parts / "checkpoint" / "about.json").exists()
    names = load_file(parts / "checkpoint" / "model.safetensors")
    assert all(".lora." in name for name in names)
    done = run(*command, "--out", parts, "--resume")
    assert done.exit_code == 0, done.exception
    assert not (parts / "checkpoint").exists()
    expected, found = (load_file(d / "adapter_model.safetensors") for d in (whole, parts))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "magic"], "choose from full, lora, dora, prompt, prefix, ptuning, pet"),
        (["--method", "pet"], "needs labelled examples"),
        (["--few", "3"], "few=3 chooses among examples; a text has none"),
        (["labels.jsonl", "--method", "full"], "for labels choose pet"),
        (["labels.jsonl", "--pattern", "no blank {text}"], "blank"),
        (["bad.jsonl"], "bad.jsonl, line 2: no JSON"),
        (["nowhere.txt"], "there is no text at"),
        (["--dtype", "int4"], "choose from float32, bfloat16"),
        (["--resume"], "holds no checkpoint"),
    ],
    ids=" ".join,
)
def test_bad_input_says_what_to_do_and_writes_nothing(arguments, message, model, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": "b"}\n{\n')
    (tmp_path / "labels.jsonl").write_bytes((data / "labels.jsonl").read_bytes())
    if arguments[0].startswith("--"):
        arguments = [data / "text.txt", *arguments]
    before = sorted(tmp_path.rglob("*"))
    done = run("finetune", model, *arguments, "--out", "out", *STEPS)
    assert done.exit_code == 1
    assert isinstance(done.exception, ValueError | OSError)  # of which a user sees one line
    assert message in str(done.exception)
    assert sorted(tmp_path.rglob("*")) == before
