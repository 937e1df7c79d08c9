"""``nonet tandem`` as a person runs it: train a secondary, and write with both."""

import json
import os
import shutil

import pytest

TRAIN = ["--layers", "1", "--steps", "6", "--window", "48", "--batch", "2", "--json"]


@pytest.fixture
def place(model, text, tmp_path, monkeypatch):
    """The folder one is in, with a tiny model and a text."""
    shutil.copytree(model, tmp_path / "model")
    shutil.copy(text, tmp_path / "text.txt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_train_and_generate(invoke, refused, place):
    out = place / "out"
    done = invoke("tandem", "train", "model", "text.txt", "--out", out, *TRAIN)
    assert done.exit_code == 0, done.exception
    figures = json.loads(done.stdout)
    said = done.stderr.splitlines()
    assert [line for line in said if line.startswith("timing")] == [
        "timing texts",
        *(f"timing texts: {i} of 6" for i in range(1, 7)),
    ]
    assert figures["validation_loss"] > 0
    alone, both = figures["primary_alone"], figures["tandem"]
    assert alone["acceptance"] is None
    assert alone["ratio"] == 1
    assert both["identical"] == both["texts"] == 6
    assert 0 <= both["acceptance"] <= 1
    assert 1 <= both["tokens_per_round"] <= 5
    assert {f.name for f in out.iterdir()} == {
        "config.json",
        "projections.safetensors",
        "secondary",
        "README.md",
    }
    texts = []
    for block in (0, 3):
        command = ["tandem", "generate", "model", out, "--prompt", "line", "--tokens", "12", "--block", block]
        written = invoke(*command, "--json")
        assert written.exit_code == 0, written.exception
        texts.append(json.loads(written.stdout)["text"])
    assert texts[0] == texts[1]
    streamed = invoke(*command)
    assert streamed.stdout.strip() == ("line" + texts[0]).strip()
    sampled = [invoke(*command, "--temperature", "0.9", "--seed", "3", "--json").stdout for _ in range(2)]
    assert json.loads(sampled[0])["text"] == json.loads(sampled[1])["text"]
    for file in ("projections.safetensors", "secondary/model.safetensors"):
        os.truncate(out / file, (out / file).stat().st_size - 1)
        code, said = refused(*command)
        assert code == 1
        assert file.rpartition("/")[2] in said
        assert "again" in said


def test_a_primary_with_few_positions_is_read_as_far_as_they_go(invoke, refused, place, chat_model):
    shutil.copytree(chat_model, place / "gpt2")
    train = ["tandem", "train", "gpt2", "text.txt", "--layers", "1", "--batch", "2"]
    code, said = refused(*train, "--window", "65", "--out", "wide")
    assert code == 1
    assert "window=65 is more than gpt2 has positions for" in said
    done = invoke(*train, "--tokens", "192", "--window", "48", "--out", "out", "--json")
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["steps"] == 2
    asked = ["tandem", "generate", "gpt2", "out", "--prompt", "line", "--tokens", 99, "--block", 3, "--json"]
    written = invoke(*asked)
    assert written.exit_code == 0, written.exception
    assert 1 <= json.loads(written.stdout)["tokens"] <= 64 + 1 - 5 - 3
    chat = json.loads(invoke(*asked, "--chat").stdout)["text"]
    assert chat != json.loads(written.stdout)["text"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "model", "text.txt", "--layers", "9"], "layers must be fewer than the primary's 3; got 9"),
        (["train", "model", "text.txt", "--layers", "1", "--loss", "hinge"], "choose from ce, distil"),
        (["train", "model", "text.txt", "--resume"], "holds no checkpoint"),
        (["train", "nowhere", "text.txt"], "is no directory"),
        (["generate", "model", "model"], "holds no tandem"),
    ],
    ids=" ".join,
)
def test_bad_input_says_what_to_do_and_writes_nothing(arguments, message, refused, place):
    before = sorted(place.rglob("*"))
    code, told = refused("tandem", *arguments, *(["--out", "out"] if arguments[0] == "train" else []))
    assert code == 1
    assert message in told
    assert sorted(place.rglob("*")) == before
