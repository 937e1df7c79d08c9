"""``nonet tandem`` as a person runs it: train a secondary, and write with both."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging
from typer.testing import CliRunner

from nonet.cli import app
from nonet.data import byte_tokenizer

TRAIN = ["--layers", "1", "--steps", "6", "--window", "48", "--batch", "2", "--json"]


@pytest.fixture(autouse=True)
def _as_it_was():
    """Gives back what a command sets for its process, which here is the tests' own."""
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


def run(*arguments):
    return CliRunner().invoke(app, ["tandem", *map(str, arguments)])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny model and a text."""
    place = tmp_path_factory.mktemp("tandem")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=256,
        pad_token_id=256,
    )
    LlamaForCausalLM(config).save_pretrained(place / "model")
    byte_tokenizer().save_pretrained(place / "model")
    (place / "text.txt").write_text("".join(f"line {i}: the quick brown fox\n" for i in range(900)))
    return place


def test_train_and_generate(place, tmp_path):
    out = tmp_path / "out"
    done = run("train", place / "model", place / "text.txt", "--out", out, *TRAIN)
    assert done.exit_code == 0, done.exception
    figures = json.loads(done.stdout)
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
        command = ["generate", place / "model", out, "--prompt", "line", "--tokens", "12", "--block", block]
        written = run(*command, "--json")
        assert written.exit_code == 0, written.exception
        texts.append(json.loads(written.stdout)["text"])
    assert texts[0] == texts[1]
    streamed = run(*command)
    assert streamed.stdout.strip() == ("line" + texts[0]).strip()
    sampled = [run(*command, "--temperature", "0.9", "--seed", "3", "--json").stdout for _ in range(2)]
    assert json.loads(sampled[0])["text"] == json.loads(sampled[1])["text"]


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
def test_bad_input_says_what_to_do_and_writes_nothing(arguments, message, place, monkeypatch):
    monkeypatch.chdir(place)
    before = sorted(place.rglob("*"))
    done = run(*arguments, *(["--out", "out"] if arguments[0] == "train" else []))
    assert done.exit_code == 1
    assert isinstance(done.exception, ValueError)  # of which a user sees one line
    assert message in str(done.exception)
    assert sorted(place.rglob("*")) == before
