"""``nonet generate`` asks a model as it was trained: prompts from anywhere, chats, and where a model ends."""

import io
import json
import logging
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from nonet.cli import app
from nonet.data import text as texts
from nonet.data.chat import chat_ids
from nonet.data.tokenizer import prompt_ids
from nonet.generation import Asked
from nonet.hf import load_pretrained

GREEDY = ["--temperature", "0", "--tokens", "4"]


def piped(data, *words):
    return CliRunner().invoke(app, [str(word) for word in words], input=data)


def asked(prompt, **changes):
    fields = {"chat": False, "tokens": 4, "temperature": 0.0, "top_p": 1.0, "seed": 0, "as_json": True}
    return Asked(prompt, **{**fields, **changes})


def test_a_prompt_comes_from_an_option_or_from_a_pipe(invoke, model):
    given = invoke("generate", model, "--prompt", "the fox", *GREEDY)
    assert given.exit_code == 0, given.exception
    assert given.stdout.startswith("the fox")
    for words in ([], ["--prompt", "-"]):
        assert piped("the fox\n", "generate", model, *words, *GREEDY).stdout == given.stdout
    two = json.loads(piped("a\n\n", "generate", model, *GREEDY, "--json").stdout)
    assert two["prompt"] == "a\n"
    wrong = piped(b"a\xff", "generate", model, *GREEDY)
    assert wrong.exit_code == 1
    assert "standard input is no UTF-8 text: byte 1 is not" in str(wrong.exception)


def test_without_a_prompt_at_a_terminal_a_text_begins(monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(texts.sys, "stdin", terminal)
    assert texts.given_prompt(None) == ""
    assert texts.given_prompt("a") == "a"


def test_a_prompt_that_a_locale_could_not_decode_is_decoded(monkeypatch):
    monkeypatch.setattr(texts.os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    mangled = "مرحبا".encode().decode("ascii", "surrogateescape")
    assert texts.given_prompt(mangled) == "مرحبا"
    with pytest.raises(ValueError, match=r"--prompt is no UTF-8 text; got 'a\\udcff'"):
        texts.given_prompt("a\udcff")


def test_a_prompt_has_the_tokens_of_training(chat_model):
    _, tokenizer = load_pretrained(chat_model)
    ids = asked("hello").ids(tokenizer).tolist()
    assert ids == [prompt_ids(tokenizer, "hello")] == [tokenizer("hello")["input_ids"]]
    ids = asked("hello", chat=True).ids(tokenizer).tolist()
    assert ids == [chat_ids(tokenizer, [("user", "hello")])]
    assert ids[0].count(tokenizer.bos_token_id) == 1


def test_a_chat_prints_the_answer_alone(invoke, chat_model, model, refused):
    command = ["generate", chat_model, "--chat", "--prompt", "hello", *GREEDY]
    streamed, whole = invoke(*command), invoke(*command, "--no-stream")
    assert streamed.exit_code == 0, streamed.exception
    document = json.loads(invoke(*command, "--json").stdout)
    assert streamed.stdout.strip() == whole.stdout.strip() == document["text"].strip()
    plain = json.loads(invoke("generate", chat_model, "--prompt", "hello", *GREEDY, "--json").stdout)
    assert plain["text"] != document["text"]
    code, said = refused("generate", model, "--chat", "--prompt", "hello")
    assert code == 1
    assert "has no chat template; give an instruct model" in said
    code, said = refused("generate", chat_model, "--chat")
    assert code == 1
    assert "answers a message; give one" in said


def test_writing_stops_where_the_positions_end(invoke, chat_model, refused, caplog):
    caplog.set_level(logging.WARNING)
    words = ["generate", chat_model, "--prompt", "a" * 49, "--temperature", "0", "--json"]
    done = invoke(*words, "--tokens", 200)  # 50 tokens with the first, of 64
    assert done.exit_code == 0, done.exception
    assert "writing stops after 15 tokens instead of 200: the positions of" in caplog.text
    assert json.loads(done.stdout)["tokens"] <= 15
    caplog.clear()
    assert invoke(*words, "--tokens", 15).exit_code == 0
    assert caplog.text == ""
    code, said = refused("generate", chat_model, "--prompt", "a" * 64)
    assert code == 1
    assert "the prompt has 65 tokens and" in said
    assert "positions for 64; shorten the prompt" in said


@pytest.mark.parametrize("temperature", ["0", "0.8"])
def test_scores_that_are_no_numbers_are_said_in_a_line(temperature, model, tmp_path, refused):
    place = shutil.copytree(model, tmp_path / "model")
    tensors = load_file(place / "model.safetensors")
    tensors["model.norm.weight"].fill_(torch.nan)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    code, said = refused("generate", place, "--prompt", "abc", "--temperature", temperature)
    assert code == 1
    assert "after 3 tokens are not finite; its weights may hold nan" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": math.nan}, "temperature must be above zero; got nan"),
        ({"temperature": math.inf}, "temperature must be above zero and finite; got inf"),
        ({"top_p": math.nan}, "top_p must be above 0 and at most 1; got nan"),
        ({"tokens": 0}, "tokens must be above zero; got 0"),
    ],
)
def test_a_number_without_meaning_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        asked("a", **changes)
