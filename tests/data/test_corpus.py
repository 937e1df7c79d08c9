"""Corpora: what is read, how it is split, and what is said when it cannot be."""

import builtins
import logging
import re
import subprocess
import sys

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given, settings
from hypothesis import strategies as st

from nonet.data import Corpus, load_corpus
from nonet.data.split import SPLITS
from nonet.extras import pip_install


def _parts(corpus):
    return {split: list(corpus.documents[split]) for split in SPLITS}


def _write(folder, count):
    for i in range(count):
        path = folder / f"part{i % 3}" / f"{i:02}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text {i}\n" * (i + 1))
    return folder


@pytest.fixture(scope="module")
def library():
    return load_corpus()


def test_the_default_is_the_librarys_own_source(library):
    files = {split: [p for p, _, _ in library.documents[split].parts] for split in SPLITS}
    every = [path for paths in files.values() for path in paths]
    assert len(every) == len(set(every)) > 300
    assert {"argparse.py", "typing.py"} <= {path.name for path in every}
    outside = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "pydoc_data"}
    assert not [path for path in every if outside & set(path.parts)]
    assert len(files["validation"]) == len(files["test"]) == len(every) // 20


def test_the_default_is_the_same_in_another_process(library):
    code = "from nonet.data import load_corpus; print(load_corpus().fingerprint)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == library.fingerprint


def test_a_file_is_cut_at_lines_in_order(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("".join(f"line {i:04} ünï\n" for i in range(400)))
    parts = _parts(load_corpus(path))
    assert b"".join(parts["train"] + parts["validation"] + parts["test"]) == path.read_bytes()
    assert [len(b"".join(parts[s]).splitlines()) for s in SPLITS] == [360, 20, 20]
    assert all(parts[split][0].endswith(b"\n") for split in SPLITS)


@given(st.lists(st.text(min_size=1).filter(lambda t: "\0" not in t), min_size=1, max_size=4))
@settings(deadline=None)
def test_any_texts_are_cut_without_loss(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("texts")
    for i, text in enumerate(texts):
        (folder / f"{i}").write_bytes(text.encode())
    whole = "".join(texts).encode()
    try:
        parts = _parts(load_corpus(folder))
    except ValueError:
        assert len(whole) < 80  # one part in twenty may be less than a character
        return
    assert b"".join(document for split in SPLITS for document in parts[split]) == whole
    for split in SPLITS:
        assert b"".join(parts[split]).decode()


def test_one_long_line_is_cut_between_characters(tmp_path):
    path = tmp_path / "line.txt"
    path.write_text("é" * 1000)
    parts = _parts(load_corpus(path))
    assert [len(parts[split][0].decode()) for split in SPLITS] == [900, 50, 50]


def test_a_folder_of_many_files_is_split_by_file(tmp_path):
    parts = _parts(load_corpus(_write(tmp_path, 40)))
    assert [len(parts[split]) for split in SPLITS] == [36, 2, 2]
    read = sorted(document for split in SPLITS for document in parts[split])
    assert read == sorted(path.read_bytes() for path in tmp_path.rglob("*.txt"))


def test_a_folder_of_few_files_is_cut_by_lines_and_keeps_its_files_apart(tmp_path):
    parts = _parts(load_corpus(_write(tmp_path, 10)))
    files = [path.read_bytes() for path in sorted(tmp_path.rglob("*.txt"))]
    assert b"".join(d for split in SPLITS for d in parts[split]) == b"".join(files)
    assert parts["train"][:5] == files[:5]


def test_the_place_of_a_folder_does_not_matter_but_its_content_does(tmp_path):
    one, two = (_write(tmp_path / name, 30) for name in ("one", "two"))
    before = load_corpus(one).fingerprint
    assert load_corpus(two).fingerprint == before
    (two / "part0" / "00.txt").write_text("other\n")
    assert load_corpus(two).fingerprint != before


def test_the_same_text_split_otherwise_is_another_corpus():
    made = [
        Corpus("c", dict(zip(SPLITS, parts, strict=True))).fingerprint
        for parts in (
            ([b"a", b"b"], [b"c"], [b"d"]),
            ([b"a"], [b"b", b"c"], [b"d"]),
            ([b"ab"], [b"c"], [b"d"]),
            ([b"a", b"b", b""], [b"c"], [b"d"]),
        )
    ]
    assert len(set(made)) == 4


def test_what_is_no_text_in_a_folder_is_left_out_and_said(tmp_path, caplog):
    _write(tmp_path, 3)
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "empty.txt").touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_text("hidden")
    with caplog.at_level(logging.WARNING):
        parts = _parts(load_corpus(tmp_path))
    text = b"".join(d for split in SPLITS for d in parts[split])
    assert b"PNG" not in text
    assert b"hidden" not in text
    assert "1 of 4 files are no text and left out" in caplog.text
    assert "image.png: byte 4 is NUL" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is empty"),
        (b"one\ntwo\0\n", "byte 7 is NUL"),
        (b"one\nt\xffo\n", "byte 5 is not UTF-8"),
        ("one\n€".encode()[:-1], "byte 4 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, content, message):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"is no text: {message}; give a file of UTF-8 text"):
        load_corpus(path)


def test_a_byte_order_mark_is_not_text(tmp_path):
    plain, marked = tmp_path / "plain", tmp_path / "marked"
    for folder, mark in ((plain, ""), (marked, "\ufeff")):
        for i in range(30):
            folder.mkdir(exist_ok=True)
            (folder / f"{i}.txt").write_text(f"{mark}text {i}\n", encoding="utf-8")
    assert _parts(load_corpus(marked)) == _parts(load_corpus(plain))
    one, other = (tmp_path / name for name in ("one.txt", "other.txt"))
    one.write_text("a line\n" * 40, encoding="utf-8")
    other.write_text("\ufeff" + "a line\n" * 40, encoding="utf-8")
    texts = (
        b"".join(d for part in _parts(load_corpus(path)).values() for d in part) for path in (one, other)
    )
    assert next(texts) == next(texts)


def test_tables_in_a_folder_are_said_and_never_all_of_it(tmp_path, caplog):
    for i in range(3):
        (tmp_path / f"{i}.jsonl").write_text('{"text": "a"}\n' * 20)
    with pytest.raises(ValueError, match=r"holds only tables, such as 0\.jsonl; give one of them"):
        load_corpus(tmp_path)
    (tmp_path / "book.txt").write_text("a line\n" * 20)
    with caplog.at_level(logging.INFO):
        load_corpus(tmp_path)
    assert "3 of 4 files are tables and learned as they stand" in caplog.text


def test_missing_short_and_empty_sources_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no text at .*nowhere; name a file"):
        load_corpus(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no text; give a folder"):
        load_corpus(tmp_path)
    (tmp_path / "short").write_text("ab")
    with pytest.raises(ValueError, match="nothing is left for validation; give a longer text"):
        load_corpus(str(tmp_path / "short"))


def test_an_interpreter_without_source_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match="no standard library in source"):
        load_corpus()


def test_a_saved_dataset_is_cut_by_rows(tmp_path):
    rows = [f"row {i}" for i in range(100)]
    Dataset.from_dict({"body": rows, "label": list(range(100))}).save_to_disk(tmp_path / "set")
    parts = _parts(load_corpus(tmp_path / "set"))
    assert [len(parts[split]) for split in SPLITS] == [90, 5, 5]
    assert [d.decode() for split in SPLITS for d in parts[split]] == rows


def test_a_saved_dataset_keeps_its_own_parts(tmp_path):
    made = {
        name: Dataset.from_dict({"text": [f"{name} {i}" for i in range(40)], "other": ["x"] * 40})
        for name in ("train", "test")
    }
    made["train"] = Dataset.from_dict({"text": [None, *made["train"]["text"][1:]], "other": ["x"] * 40})
    DatasetDict(made).save_to_disk(tmp_path / "set")
    parts = _parts(load_corpus(tmp_path / "set"))
    assert [len(parts[split]) for split in SPLITS] == [38, 2, 40]
    assert parts["validation"] == [b"train 38", b"train 39"]
    assert parts["train"][:2] == [b"", b"train 1"]


def test_a_saved_dataset_without_a_text_is_refused(tmp_path):
    Dataset.from_dict({"a": ["x"] * 9, "b": ["y"] * 9}).save_to_disk(tmp_path / "two")
    with pytest.raises(ValueError, match=r"needs a column named text, .* it has a, b"):
        load_corpus(tmp_path / "two")
    DatasetDict({"dev": Dataset.from_dict({"text": ["x"]})}).save_to_disk(tmp_path / "dev")
    with pytest.raises(ValueError, match="has the parts dev; save it with one named train"):
        load_corpus(tmp_path / "dev")


def test_a_saved_dataset_says_which_package_it_needs(tmp_path, monkeypatch):
    Dataset.from_dict({"text": ["x"] * 30}).save_to_disk(tmp_path / "set")
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "datasets":
            raise ModuleNotFoundError("No module named 'datasets'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=re.escape(pip_install("datasets"))):
        load_corpus(tmp_path / "set")
