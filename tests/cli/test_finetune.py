"""``nonet finetune`` as a person runs it: text, answers and labels, adapters that load again, resuming."""

import json
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from nonet.hf import load_adapter, load_pretrained

STEPS = ["--steps", "4", "--window", "48", "--batch", "2", "--json"]


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
    chats = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"{i + 1}"}]}
        for i in range(40)
    ]
    files = {"answers.jsonl": answers, "labels.jsonl": labels, "chats.jsonl": chats}
    for name, rows in files.items():
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
def test_what_was_learned_is_an_adapter_that_loads_again(method, source, invoke, model, data, tmp_path):
    out = tmp_path / "out"
    done = invoke("finetune", model, data / source, "--method", method, "--out", out, *STEPS)
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
        *(["labels.json"] if source == "labels.jsonl" else []),
    }
    card = (out / "README.md").read_text()
    assert f"| {measured} | {figures[measured]} |" in card
    assert "| seed | 0 |" in card
    base, _ = load_pretrained(model)
    ids = torch.tensor([list(b"the quick")])
    before = base(ids).logits
    assert not torch.equal(load_adapter(base, out)(ids).logits, before)
    written = invoke("generate", model, "--adapter", out, "--prompt", "the", "--tokens", "4", "--json")
    assert written.exit_code == 0, written.exception
    assert json.loads(written.stdout)["tokens"] >= 1


@pytest.mark.parametrize(("method", "source"), [("full", "text.txt"), ("pet", "labels.jsonl")])
def test_whole_models_are_written_whole(method, source, invoke, model, data, tmp_path):
    out = tmp_path / "out"
    done = invoke("finetune", model, data / source, "--method", method, "--out", out, *STEPS)
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["share_of_parameters"] == 1
    tuned, _ = load_pretrained(out)
    base, _ = load_pretrained(model)
    assert not torch.equal(tuned.lm_head.weight, base.lm_head.weight)


def test_a_conversation_is_what_a_chat_asks_for(invoke, chat_model, data, tmp_path):
    figures = []
    for source, words in (("chats.jsonl", []), ("answers.jsonl", ["--chat"]), ("answers.jsonl", [])):
        out = tmp_path / f"out{len(figures)}"
        done = invoke("finetune", chat_model, data / source, *words, "--out", out, *STEPS)
        assert done.exit_code == 0, done.exception
        figures.append(json.loads(done.stdout))
    assert len({f["nats_per_token_before"] for f in figures}) == 3
    assert figures[0]["nats_per_token"] < figures[0]["nats_per_token_before"]


def test_a_training_is_as_long_as_steps_or_tokens_say(invoke, refused, model, data, tmp_path):
    words = ["finetune", model, data / "text.txt", "--window", "48", "--batch", "2", "--json"]
    done = invoke(*words, "--tokens", 2 * 96 + 50, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["steps"] == 2
    code, said = refused(*words, "--tokens", 96, "--steps", 1, "--out", tmp_path / "other")
    assert code == 1
    assert "--steps 1 and --tokens 96 both say how long to train" in said
    done = invoke(
        "train",
        data / "text.txt",
        "--window",
        "32",
        "--batch",
        "2",
        "--steps",
        3,
        "--json",
        "--out",
        tmp_path / "m",
    )
    assert json.loads(done.stdout)["training_tokens"] == 3 * 64


def test_pet_has_examples_of_its_own(invoke, model, tmp_path):
    out = tmp_path / "out"
    command = ["finetune", model, "--method", "pet", "--few", "10", "--out", out, *STEPS, "--window", "64"]
    done = invoke(*command)
    assert done.exit_code == 0, done.exception
    assert (
        "| labels | asyncio, email, logging, multiprocessing, unittest |" in (out / "README.md").read_text()
    )


def test_a_killed_training_continues_to_the_same_adapter(invoke, model, data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = ["finetune", model, data / "text.txt", "--steps", "150", "--window", "48", "--batch", "2"]
    assert invoke(*command, "--out", whole).exit_code == 0
    started = [sys.executable, "-m", "nonet", *map(str, command), "--out", str(parts)]
    with subprocess.Popen(started, stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.startswith("step 15 of 150:"):
                break
        process.send_signal(signal.SIGINT)
        process.stderr.read()
    assert process.returncode == 3
    names = [name for name in load_file(parts / "checkpoint.safetensors") if name.startswith("model.")]
    assert names
    assert all(".lora." in name for name in names)
    done = invoke(*command, "--out", parts, "--resume")
    assert done.exit_code == 0, done.exception
    assert not (parts / "checkpoint.safetensors").exists()
    expected, found = (load_file(d / "adapter_model.safetensors") for d in (whole, parts))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(("method", "most"), [("lora", 64), ("prompt", 60), ("full", 64)])
def test_a_window_beyond_the_positions_is_refused_before_training(
    method, most, refused, chat_model, data, tmp_path
):
    words = ["finetune", chat_model, data / "text.txt", "--method", method, "--length", "4", "--steps", "1"]
    code, said = refused(*words, "--window", most + 1, "--out", tmp_path / "out")
    assert code == 1
    assert f"window={most + 1} is more than {chat_model} has positions for" in said
    assert f"give window={most} or less" in said
    assert not (tmp_path / "out").exists()


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
        (["semicolons.csv"], "semicolons.csv, line 2: must have messages, or prompt and completion"),
        (["--chat"], "chat=True needs prompts with completions, or messages; got a text"),
        (["labels.jsonl", "--chat"], "got a file of labels"),
        (["answers.jsonl", "--chat"], "has no chat template; give an instruct model"),
        (["chats.jsonl"], "has no chat template"),
        (["roles.jsonl"], "roles.jsonl, line 1: messages must be a list with a message of the user before"),
        (["--dtype", "int4"], "choose from float32, bfloat16"),
        (["--resume"], "holds no checkpoint"),
    ],
    ids=" ".join,
)
def test_bad_input_says_what_to_do_and_writes_nothing(
    arguments, message, refused, model, data, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": "b"}\n{\n')
    (tmp_path / "semicolons.csv").write_text("text;label\n" + "a;b\n" * 20)
    (tmp_path / "roles.jsonl").write_text('{"messages": [{"role": "assistant", "content": "a"}]}\n' * 20)
    for file in data.glob("*.jsonl"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if arguments[0].startswith("--"):
        arguments = [data / "text.txt", *arguments]
    before = sorted(tmp_path.rglob("*"))
    code, told = refused("finetune", model, *arguments, "--out", "out", *STEPS)
    assert code == 1
    assert message in told
    assert sorted(tmp_path.rglob("*")) == before
