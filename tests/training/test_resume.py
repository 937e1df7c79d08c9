"""A training that is stopped and resumed is the one that was not, to the bit; or it is refused."""

import errno
import json
import os
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save_file
from transformers.utils import logging

from nonet.training import Recipe, checkpoint, fit, train_model
from nonet.training.checkpoint import Keeper, read_about
from nonet.training.finetune import Tuning
from nonet.training.fingerprint import of_model, of_tokenizer
from nonet.training.pairing import Pairing, train_tandem
from nonet.training.randomness import random_states, set_random_states
from nonet.training.teaching import finetune_model

SIZES = {"steps": 6, "window": 24, "batch": 2, "learning_rate": 1e-2, "seed": 3}


@pytest.fixture(autouse=True)
def _as_it_was():
    verbosity = logging.get_verbosity()
    yield
    logging.set_verbosity(verbosity)
    logging.enable_progress_bar()


class Stopped(Keeper):
    """Ends every training after its second step, as Ctrl-C would."""

    def on_step_end(self, args, state, control, **kwargs):
        self.stop = self.first_step + state.global_step == 2
        super().on_step_end(args, state, control, **kwargs)


@pytest.fixture(scope="module")
def stopped(chat_model, model, tmp_path_factory):
    """A folder with two models, a text, examples of each kind, and every training of RUNS, stopped."""
    place = tmp_path_factory.mktemp("stopped")
    shutil.copytree(chat_model, place / "gpt2")
    shutil.copytree(model, place / "llama")
    (place / "text.txt").write_text("".join(f"line {i} of a text\n" for i in range(200)))
    answers = [{"prompt": f"{i}?", "completion": f"{i}!"} for i in range(30)]
    labels = [{"text": f"text {i}", "label": "ab"[i % 2]} for i in range(30)]
    for name, rows in (("answers.jsonl", answers), ("labels.jsonl", labels)):
        (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr(fit, "Keeper", Stopped)
        for name, run in RUNS.items():
            assert run(Path(name)) == 3
    return place


@pytest.fixture
def place(stopped, tmp_path, monkeypatch):
    """A copy of that folder, which is the one that one is in."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tune(method="full", source="text.txt", **changes):
    tuning = Tuning(**{"model": "gpt2", "source": source, "method": method, **SIZES, **changes})
    return lambda out, resume=False: finetune_model(tuning, out, resume=resume, as_json=False)


def pretrain(**changes):
    fields = {"pattern": "F", "position": "rope", "linear": "dense", "residual": "standard", "size": "tiny"}
    fields |= {"window": 24, "batch": 2, "tokens": 6 * 48, "learning_rate": None, "seed": 0}
    recipe = Recipe(**{"source": "text.txt", "tokenizer": "gpt2", **fields, **changes})
    return lambda out, resume=False: train_model(recipe, out, resume=resume, as_json=False)


def tandem():
    pairing = Pairing(model="llama", source="text.txt", layers=1, **SIZES)
    return lambda out, resume=False: train_tandem(pairing, out, resume=resume, as_json=False)


def weights(out):
    found = {}
    for file in sorted(out.rglob("*.safetensors")):
        found |= {f"{file.relative_to(out)} {name}": tensor for name, tensor in load_file(file).items()}
    return found


RUNS = {
    "full": tune("full"),
    "pet": tune("pet", "labels.jsonl", window=48),
    "lora": tune("lora", "answers.jsonl"),
    "prompt": tune("prompt", length=4),
    "train": pretrain(pattern="RM"),
    "tandem": tandem(),
}


@pytest.mark.parametrize("name", [name for name in RUNS if name != "tandem"])  # which has no dropout
def test_a_resumed_training_is_the_one_that_was_never_stopped(name, place):
    assert [f.name for f in (place / name).iterdir()] == ["checkpoint.safetensors"]
    torch.manual_seed(99)  # what another process begins with
    assert RUNS[name](place / name, resume=True) == 0
    assert RUNS[name](place / "whole") == 0
    expected, found = weights(place / "whole"), weights(place / name)
    assert expected.keys() == found.keys()
    assert [key for key in expected if not torch.equal(expected[key], found[key])] == []


@pytest.mark.parametrize("name", RUNS)
def test_a_training_that_ended_before_its_result_was_written_is_finished(name, place, monkeypatch, capsys):
    def killed(*arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit, "write_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            RUNS[name](place / "last")
    about = read_about(place / "last")
    assert about["step"] == 6
    with pytest.raises(ValueError, match="is not empty; continue it with --resume"):
        RUNS[name](place / "last")
    monkeypatch.setattr(fit, "make_trainer", lambda *_, **__: pytest.fail("nothing is left to train"))
    assert RUNS[name](place / "last", resume=True) == 0
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert RUNS[name](place / "whole") == 0
    found = sorted(f.relative_to(place / "last") for f in (place / "last").rglob("*"))
    assert found == sorted(f.relative_to(place / "whole") for f in (place / "whole").rglob("*"))
    for file in found:
        if file.suffix in (".json", ".safetensors"):
            assert (place / "last" / file).read_bytes() == (place / "whole" / file).read_bytes()
    last, whole = ((place / run / "README.md").read_text() for run in ("last", "whole"))
    seconds = [line for line in last.splitlines() if re.search("seconds", line)]
    assert seconds
    assert "0.0 " not in "".join(seconds)
    assert len(last.splitlines()) == len(whole.splitlines())


@pytest.mark.parametrize("name", ["train", "lora"])
def test_a_checkpoint_that_cannot_be_written_ends_no_training(name, place, monkeypatch, capsys):
    saving = checkpoint.save_checkpoint

    def full(directory, model, optimizer, about):
        if about["step"] in (2, 3):
            raise OSError("the disk is full")
        saving(directory, model, optimizer, about)

    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    monkeypatch.setattr(fit, "Keeper", Keeper)
    monkeypatch.setattr(fit, "SECONDS_BETWEEN_CHECKPOINTS", 0.0)
    assert RUNS[name](place / "whole") == 0
    said = capsys.readouterr().err
    assert said.count("No checkpoint of step") == 1  # people are told when it begins
    assert "No checkpoint of step 2: the disk is full. The run goes on." in said
    assert not (place / "whole" / checkpoint.NAME).exists()


def test_a_stop_whose_checkpoint_cannot_be_written_says_what_is_kept(place, monkeypatch):
    def full(*arguments):
        raise OSError("the disk is full")

    monkeypatch.setattr(fit, "Keeper", Stopped)
    monkeypatch.setattr(checkpoint, "save_checkpoint", full)
    with pytest.raises(OSError, match=r"^stopped early: the disk is full; nothing is written$"):
        RUNS["lora"](place / "other")


def test_a_result_that_cannot_be_written_names_the_folder_and_keeps_the_checkpoint(place, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("nonet.hf.adapters.save_file", full)
        with pytest.raises(
            OSError, match=r"cannot write .*other: No space left.*; the checkpoint of step 6 stays"
        ):
            RUNS["lora"](place / "other")
    assert [f.name for f in (place / "other").iterdir()] == ["checkpoint.safetensors"]
    assert RUNS["lora"](place / "other", resume=True) == 0


def test_a_disk_without_room_is_refused_before_the_first_step(place, monkeypatch):
    monkeypatch.setattr(fit, "make_trainer", lambda *_, **__: pytest.fail("a step was to be made"))
    free = shutil.disk_usage(place)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(OSError, match=r"the disk of .*other has 1,000 bytes free, but [\d,]+ are needed"):
        RUNS["full"](place / "other")
    assert not (place / "other").exists()


def test_an_out_that_cannot_be_made_is_refused_at_once(place, monkeypatch):
    monkeypatch.setattr("nonet.training.teaching.load_pretrained", lambda *_: pytest.fail("a model was read"))
    with pytest.raises(OSError, match="File name too long; choose another folder"):
        RUNS["lora"](place / ("n" * 256))
    with pytest.raises(NotADirectoryError, match="is a file; name a folder"):
        RUNS["lora"](place / "text.txt" / "out")


def test_what_there_is_to_resume_is_said(place):
    with pytest.raises(ValueError, match="whole holds no checkpoint; leave --resume out to begin"):
        RUNS["lora"](place / "whole", resume=True)
    assert RUNS["lora"](place / "whole") == 0
    with pytest.raises(
        ValueError, match=r"whole holds no checkpoint; it holds a finished training.*another --out"
    ):
        RUNS["lora"](place / "whole", resume=True)


def test_a_name_of_250_letters_is_served(place):
    assert RUNS["lora"](place / ("n" * 250)) == 0
    assert not [f.name for f in place.iterdir() if f.name.startswith(".")]


@pytest.mark.parametrize("name", ["full", "train"])
def test_a_trained_model_generates_with_a_cache(name, place):
    assert RUNS[name](place / "whole") == 0
    assert json.loads((place / "whole" / "config.json").read_text())["use_cache"] is True


def add(name, line):
    file = Path(name)
    file.write_text(file.read_text() + line)


def change_text():
    add("text.txt", "one more line\n")


def change_examples():
    add("answers.jsonl", '{"prompt": "more?", "completion": "more!"}\n')


def change_template():
    add("gpt2/chat_template.jinja", "!")


def change_config():
    file = Path("gpt2/config.json")
    file.write_text(json.dumps({**json.loads(file.read_text()), "layer_norm_epsilon": 0.1}))


def change_weights(name="gpt2"):
    tensors = load_file(f"{name}/model.safetensors")
    tensors[sorted(tensors)[-1]].view(-1)[-1] += 1
    save_file(tensors, f"{name}/model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("name", "change", "what"),
    [
        ("full", change_text, "the text"),
        ("full", change_weights, "the base model"),
        ("full", change_template, "the tokenizer"),
        ("lora", change_examples, "the examples"),
        ("lora", change_config, "the base model"),
        ("train", change_text, "the text"),
        ("train", change_template, "the tokenizer"),
        ("tandem", change_text, "the text"),
        ("tandem", lambda: change_weights("llama"), "the base model"),
    ],
)
def test_a_training_goes_on_only_with_what_it_rests_on(name, change, what, place):
    before = {f: f.read_bytes() for f in (place / name).rglob("*") if f.is_file()}
    change()
    with pytest.raises(ValueError, match=f"--resume: {what} changed since the checkpoint in .* begin again"):
        RUNS[name](Path(name), resume=True)
    assert {f: f.read_bytes() for f in (place / name).rglob("*") if f.is_file()} == before


def test_a_damaged_checkpoint_is_named(place):
    file = place / "full" / "checkpoint.safetensors"
    whole = file.read_bytes()
    kept = load(whole)  # a copy: the file is cut short below
    for damaged in (whole[:-1], whole[:4], b"", b"something else" * 100):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors is cut short or damaged"):
            RUNS["full"](place / "full", resume=True)
    for about in (None, {"about": "{"}, {"about": "[]"}, {"about": '{"step": 2}'}):
        save_file(kept, file, about)
        with pytest.raises(ValueError, match=r"checkpoint\.safetensors is not a checkpoint of nonet"):
            RUNS["full"](place / "full", resume=True)


def test_a_checkpoint_of_other_weights_is_refused(place):
    file = place / "lora" / "checkpoint.safetensors"
    with safe_open(file, framework="pt") as opened:
        about = opened.metadata()
    kept = load(file.read_bytes())
    name = next(name for name in kept if name.startswith("model."))
    for changed in ({name: kept[name][:1]}, {f"{name}.other": kept[name].clone()}):
        save_file({**kept, **changed}, file, about)
        with pytest.raises(
            ValueError, match=r"checkpoint\.safetensors does not hold the parameters that are trained"
        ):
            RUNS["lora"](place / "lora", resume=True)


def test_states_of_all_generators_come_back():
    def draw():
        return [(random.gauss(0, 1), np.random.standard_normal(), torch.rand(3).tolist()) for _ in range(3)]

    draw()  # leaves spare numbers of a normal distribution
    kept = random_states()
    drawn = draw()
    set_random_states(kept)
    assert draw() == drawn


def test_fingerprints_change_with_any_weight_and_rule(chat_tokenizer):
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2)).to(torch.bfloat16)
    before = of_model(model)
    assert of_model(model) == before
    with torch.no_grad():
        model[1].bias[1] += 1
    assert of_model(model) != before
    assert of_model(model.float()) != of_model(model.double())
    before = of_tokenizer(chat_tokenizer)
    chat_tokenizer("a text", truncation=True, max_length=1)
    assert of_tokenizer(chat_tokenizer) == before
