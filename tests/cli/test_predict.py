"""``nonet predict`` labels texts with what ``nonet finetune`` taught."""

import json

import pytest
import torch

from nonet.hf import load_adapter, load_pretrained
from nonet.hf.labels import load_question

FEW = ["--steps", "4", "--window", "40", "--batch", "4", "--learning-rate", "1e-2"]
LABELS = ("miau", "wuff")


@pytest.fixture(scope="module")
def taught(invoke, model, tmp_path_factory):
    """A model taught two labels whole, an adapter taught them, and a file of texts."""
    place = tmp_path_factory.mktemp("taught")
    rows = [{"text": f"{('cat', 'dog')[i % 2]} {i}", "label": LABELS[i % 2]} for i in range(40)]
    (place / "animals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for method in ("pet", "lora"):
        words = ["--method", method, "--pattern", "{text} says {blank}", "--out", place / method]
        done = invoke("finetune", model, place / "animals.jsonl", *words, *FEW)
        assert done.exit_code == 0, done.exception
    (place / "texts.txt").write_text("cat 1\ndog 2\n\ncat 3\n")
    return place


def expected(directory, model, adapter=None):
    loaded, tokenizer = load_pretrained(directory)
    loaded = loaded if adapter is None else load_adapter(loaded, adapter)
    pet = load_question(adapter or directory).ask(loaded, tokenizer)
    return pet.scores(["cat 1", "dog 2", "", "cat 3"]).softmax(-1)


def test_a_label_a_line_and_the_probabilities_with_json(taught, model, invoke):
    for words, probabilities in (
        ([taught / "pet"], expected(taught / "pet", model)),
        ([model, "--adapter", taught / "lora"], expected(model, model, taught / "lora")),
    ):
        name, *options = words
        lines = invoke("predict", name, taught / "texts.txt", *options)
        assert lines.exit_code == 0, lines.exception
        labels = [LABELS[i] for i in probabilities.argmax(-1)]
        assert lines.stdout == "".join(f"{label}\n" for label in labels)
        document = json.loads(invoke("predict", name, taught / "texts.txt", *options, "--json").stdout)
        assert [row["label"] for row in document["predictions"]] == labels
        found = torch.tensor([[row["probabilities"][x] for x in LABELS] for row in document["predictions"]])
        assert torch.equal(found, probabilities)


def test_what_was_asked_in_training_is_kept(taught):
    about = json.loads((taught / "pet" / "labels.json").read_text())
    assert about == {
        "pattern": "{text} says {blank}",
        "words": {label: [label] for label in LABELS},
        "max_length": 40,
    }


def test_a_table_gives_its_column_text(taught, model, invoke, tmp_path):
    (tmp_path / "t.csv").write_text("id,text\n1,cat 1\n2,dog 2\n")
    lines = invoke("predict", taught / "pet", tmp_path / "t.csv")
    whole = invoke("predict", taught / "pet", taught / "texts.txt")
    assert lines.stdout.splitlines() == whole.stdout.splitlines()[:2]


def test_a_damaged_question_is_named(taught, tmp_path, refused):
    place = tmp_path / "damaged"
    place.mkdir()
    for text, words in (
        ("{", "labels.json is no JSON"),
        ('{"pattern": "a"}', "labels.json cannot be read (TypeError: "),
    ):
        (place / "labels.json").write_text(text)
        code, said = refused("predict", place, taught / "texts.txt")
        assert code == 1
        assert words in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "texts.txt"], "holds no labels.json, so it was not taught labels"),
        (["owner/name", "texts.txt"], "is a model on the hub; give the --adapter"),
        (["PET", "nowhere.txt"], "there is no file at"),
        (["PET", "other.jsonl"], "other.jsonl, line 1: must have text; it has words"),
    ],
)
def test_what_cannot_be_labelled_is_said(words, message, taught, model, tmp_path, refused, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("cat\n")
    (tmp_path / "other.jsonl").write_text('{"words": "cat"}\n')
    names = {"MODEL": str(model), "PET": str(taught / "pet")}
    code, said = refused("predict", *(names.get(word, word) for word in words))
    assert code == 1
    assert message in said
