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

TRAIN = ["train", "--window", "32", "--batch", "4", "--tokens"]


def run(*arguments, **options):
    command = [sys.executable, "-m", "nonet", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=250, **options)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "fox.txt"
    path.write_text("".join(f"line {i}: the quick brown fox jumps over the lazy dog\n" for i in range(900)))
    return str(path)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    out = tmp_path_factory.mktemp("models") / "model"
    done = run(*TRAIN, "6400", text, "--out", str(out), "--json")
    assert done.returncode == 0, done.stderr
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


def test_generate_writes_the_same_text_for_the_same_seed(trained):
    out, _ = trained
    first, second = (
        run("generate", str(out), "--prompt", "the quick", "--tokens", "12", "--json") for _ in range(2)
    )
    assert first.returncode == 0, first.stderr
    document = json.loads(first.stdout)
    assert document["text"] == json.loads(second.stdout)["text"]
    assert 1 <= document["tokens"] <= 12
    streamed = run("generate", str(out), "--prompt", "the quick", "--tokens", "12")
    assert streamed.stdout.strip() == ("the quick" + document["text"]).strip()


def test_a_stopped_training_continues_to_the_same_weights(text, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    arguments = [*TRAIN, "76800", text, "--seed", "5"]
    assert run(*arguments, "--out", str(whole)).returncode == 0
    command = [sys.executable, "-m", "nonet", *arguments, "--out", str(parts)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("step 60 of 600:"):
                break
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode == 3
    assert (parts / "checkpoint" / "about.json").exists()
    step = json.loads((parts / "checkpoint" / "about.json").read_text())["step"]
    assert 0 < step < 600

    again = run(*arguments, "--out", str(parts))
    assert again.returncode == 1
    assert "--resume" in again.stderr
    other = run(*[*TRAIN, "38400", text, "--seed", "5"], "--out", str(parts), "--resume")
    assert other.returncode == 1
    assert "another tokens" in other.stderr

    done = run(*arguments, "--out", str(parts), "--resume")
    assert done.returncode == 0, done.stderr
    assert not (parts / "checkpoint").exists()
    expected, found = (load_file(d / "model.safetensors") for d in (whole, parts))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


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
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_bad_input_says_what_to_do_and_writes_nothing(arguments, message, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    torch.save({}, tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "short.txt").write_text("short\n" * 20)
    (tmp_path / "full.txt").write_text("long enough to train on\n" * 2000)
    before = sorted(tmp_path.rglob("*"))
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
