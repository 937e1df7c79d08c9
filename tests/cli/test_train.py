"""``nonet train`` and ``nonet generate`` as a person runs them."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import nonet.model.modeling  # noqa: F401  (makes the architecture known to the Auto classes)
from nonet.training.checkpoint import read_about

TRAIN = ["train", "--window", "32", "--batch", "4", "--tokens"]


@pytest.fixture(scope="module")
def trained(invoke, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "model"
    done = invoke(*TRAIN, "6400", text, "--out", out, "--json")
    assert done.exit_code == 0, done.exception
    return out, json.loads(done.stdout)


def test_train_writes_a_directory_that_transformers_loads(trained):
    out, figures = trained
    assert {f.name for f in out.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
    }
    assert {f.suffix for f in out.iterdir()} == {".json", ".safetensors", ".md"}
    assert figures["validation_bits_per_byte"] < 5
    card = (out / "README.md").read_text()
    assert f"{figures['validation_bits_per_byte']:.4f}" in card
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer("the quick", return_tensors="pt")["input_ids"]
    assert ids.tolist() == [list(b"the quick")]
    assert model(ids).logits.shape == (1, 9, 257)


def test_generate_writes_the_same_text_for_the_same_seed(invoke, trained):
    out, _ = trained
    command = ["generate", out, "--prompt", "the quick", "--tokens", "12"]
    first, second = (invoke(*command, "--json") for _ in range(2))
    assert first.exit_code == 0, first.exception
    document = json.loads(first.stdout)
    assert document["text"] == json.loads(second.stdout)["text"]
    assert 1 <= document["tokens"] <= 12
    assert invoke(*command).stdout.strip() == ("the quick" + document["text"]).strip()


def test_a_stopped_training_continues_to_the_same_weights(invoke, refused, text, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = [*TRAIN, "19200", str(text), "--seed", "5"]
    assert invoke(*arguments, "--out", whole).exit_code == 0
    command = [sys.executable, "-m", "nonet", *arguments, "--out", str(parts)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("step 15 of 150:"):
                break
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode == 3
    step = read_about(parts)["step"]
    assert 0 < step < 150

    code, told = refused(*arguments, "--out", parts)
    assert code == 1
    assert "--resume" in told
    code, told = refused(*TRAIN, "9600", text, "--seed", "5", "--out", parts, "--resume")
    assert code == 1
    assert "another tokens" in told

    done = invoke(*arguments, "--out", parts, "--resume")
    assert done.exit_code == 0, done.exception
    assert not (parts / "checkpoint.safetensors").exists()
    expected, found = (load_file(d / "model.safetensors") for d in (whole, parts))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_pattern_is_repeated_whole_and_what_is_idle_is_said(invoke, text, tmp_path):
    sizes = [*TRAIN, "128", text]
    done = invoke(*sizes, "--pattern", "MMF", "--out", tmp_path / "three")
    assert done.exit_code == 0, done.exception
    assert "The model has 3 layers, to repeat the pattern MMF whole; size tiny has 2." in done.stderr
    assert "no effect" not in done.stderr
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "three").config
    assert [mixer.name for mixer in config.mixers()] == ["mamba", "mamba", "flash"]
    done = invoke(*sizes, "--pattern", "MG", "--out", tmp_path / "two")
    assert "Position rope has no effect: no mixer of the pattern MG reads it" in done.stderr
    assert "layers" not in done.stderr
    done = invoke(*sizes, "--pattern", "M", "--position", "learned", "--out", tmp_path / "learned")
    assert "no effect" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "nowhere"], "is no directory"),
        (["generate", "empty"], "no config.json"),
        (["generate", "pickled"], "pickle (pytorch_model.bin)"),
        (["train", "--pattern", "Q", "--out", "m"], "must be spelled with the letters"),
        (["train", "--position", "absolute", "--out", "m"], "choose from"),
        (["train", "--size", "huge", "--out", "m"], "choose from"),
        (["train", "full.txt", "--out", "full"], "is not empty"),
        (["train", "--resume", "--out", "m"], "holds no checkpoint"),
        (["train", "short.txt", "--out", "m"], "one window"),
        (["train", "answers.jsonl", "--out", "m"], "line 1: must have text; it has prompt, completion"),
        (["train", "wide.txt", "--out", "m"], "it is UTF-16 (convert it with: iconv"),
        (["train", "--steps", "2", "--tokens", "9", "--out", "m"], "both say how long to train"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_says_what_to_do_and_writes_nothing(arguments, message, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "short.txt").write_text("short\n" * 20)
    (tmp_path / "wide.txt").write_text("a wide text\n" * 20, encoding="utf-16")
    (tmp_path / "answers.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 20)
    (tmp_path / "full.txt").write_text("long enough to train on\n" * 2000)
    before = sorted(tmp_path.rglob("*"))
    code, told = refused(*arguments)
    assert code == 1
    assert message in told
    assert sorted(tmp_path.rglob("*")) == before
