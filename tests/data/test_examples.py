"""Examples out of files: what is read, how it is dealt, and which line is named when one is wrong."""

import json
import logging

import pytest

from nonet.data.corpus import load_corpus
from nonet.data.examples import read_examples


def write(path, rows):
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def labelled(count):
    return [{"text": f"text {i}", "label": "ab"[i % 2], "other": None} for i in range(count)]


def test_every_example_is_dealt_once_and_the_same_way_each_time(tmp_path):
    path = write(tmp_path / "a.jsonl", labelled(50))
    found = read_examples(path)
    assert found.columns == ("text", "label")
    assert found.labels == ("a", "b")
    parts = (found.train, found.validation, found.test)
    assert [len(part) for part in parts] == [40, 5, 5]
    assert sorted(e.text for part in parts for e in part) == sorted(f"text {i}" for i in range(50))
    assert read_examples(path) == found
    assert read_examples(path, seed=1).test != found.test


def test_csv_and_jsonl_agree(tmp_path):
    rows = [{"prompt": f'a "{i}", and\nmore', "completion": str(i)} for i in range(12)]
    lines = "".join(f'"a ""{i}"", and\nmore",{i}\n' for i in range(12))
    (tmp_path / "a.csv").write_text(f"prompt,completion\n{lines}")
    csv = read_examples(tmp_path / "a.csv")
    jsonl = read_examples(write(tmp_path / "a.jsonl", rows))
    assert (csv.columns, csv.train, csv.test) == (jsonl.columns, jsonl.train, jsonl.test)
    assert csv.train[0].completion
    assert csv.labels == ()


def test_few_are_even_over_labels_and_the_rest_tests_too(tmp_path):
    path = write(tmp_path / "a.jsonl", labelled(50))
    whole, few = read_examples(path), read_examples(path, few=6)
    assert [e.label for e in few.train].count("a") == 3
    assert len(few.train) == 6
    assert few.validation == whole.validation
    assert few.test[: len(whole.test)] == whole.test
    assert sorted(map(str, few.train + few.test)) == sorted(map(str, whole.train + whole.test))


def test_numbers_and_truth_values_are_labels(tmp_path):
    rows = [{"text": f"t{i}", "label": i % 2 == 0} for i in range(10)]
    assert read_examples(write(tmp_path / "a.jsonl", rows)).labels == ("False", "True")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 12: no JSON"),
        ("[1]", "line 12: must be a JSON object; got list"),
        ({"text": "x"}, "line 12: label must be text that is not empty; got nothing"),
        ({"text": 3, "label": "a"}, "line 12: text must be text that is not empty; got 3"),
        ({"text": " ", "label": "a"}, "line 12: text must be text that is not empty; got ' '"),
    ],
)
def test_the_bad_line_is_named(tmp_path, line, words):
    with pytest.raises(ValueError, match=words):
        read_examples(write(tmp_path / "a.jsonl", [*labelled(11), line]))


def test_a_bad_record_of_a_table_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "a,b\n" * 11 + "a,b,c\n")
    with pytest.raises(ValueError, match="line 13: it has another number of fields"):
        read_examples(path)
    path.write_text('text,label\n"a,b\n')
    with pytest.raises(ValueError, match="line 2: unexpected end of data"):
        read_examples(path)


def test_what_cannot_serve_says_what_could(tmp_path):
    with pytest.raises(
        ValueError, match="line 1: must have messages, or prompt and completion, or text and label, or text"
    ):
        read_examples(write(tmp_path / "a.jsonl", [{"words": "x"}]))
    with pytest.raises(ValueError, match="has 3 examples; at least 10"):
        read_examples(write(tmp_path / "b.jsonl", labelled(3)))
    with pytest.raises(FileNotFoundError, match="no file"):
        read_examples(tmp_path / "c.jsonl")
    with pytest.raises(ValueError, match=r"must end in \.jsonl, \.ndjson, \.json, \.csv, \.tsv"):
        read_examples(write(tmp_path / "d.txt", ["x"]))
    (tmp_path / "e.jsonl").write_bytes(b'{"text": "\xff"}')
    with pytest.raises(ValueError, match="byte 10 is not UTF-8"):
        read_examples(tmp_path / "e.jsonl")
    with pytest.raises(ValueError, match="few"):
        read_examples(write(tmp_path / "f.jsonl", labelled(20)), few=0)


LINES = [f'"a, ""{i}""",{"ab"[i % 2]}' for i in range(20)]
ROWS = [{"text": f'a, "{i}"', "label": "ab"[i % 2]} for i in range(20)]
TABLES = {
    "a.csv": "\n".join(["text,label", *LINES]),
    "a.CSV": "\n".join(["text,label", *LINES]),
    "spaced.csv": "\n".join(["text, label", *(line.replace('",', '", ') for line in LINES)]),
    "a.tsv": "\n".join(["text\tlabel", *(line.replace('",', '"\t') for line in LINES)]),
    "a.jsonl": "\n".join(map(json.dumps, ROWS)),
    "a.JSONL": "\n".join(map(json.dumps, ROWS)),
    "a.ndjson": "\n".join(map(json.dumps, ROWS)),
    "a.json": json.dumps(ROWS, indent=1),
}


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["", "BOM"])
@pytest.mark.parametrize("name", TABLES)
def test_every_kind_of_table_holds_the_same_examples(name, mark, tmp_path):
    (tmp_path / name).write_text(mark + TABLES[name], encoding="utf-8")
    found = read_examples(tmp_path / name)
    expected = read_examples(write(tmp_path / "expected.jsonl", ROWS))
    assert found.columns == ("text", "label")
    assert (found.train, found.validation, found.test) == (
        expected.train,
        expected.validation,
        expected.test,
    )
    corpus = load_corpus(tmp_path / name)
    assert list(corpus.documents["train"]) == [e.text.encode() for e in expected.train]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "text;label\n" + "a;b\n" * 20, r"line 2: must have .* it has text;label"),
        ("a.csv", "hello,world\n" + "a,b\n" * 20, r"line 2: must have .* it has hello, world"),
        ("a.csv", "text,text\n" + "a,b\n" * 20, "line 1: a column is there twice; it has text, text"),
        ("a.json", json.dumps({"data": ROWS}), "must hold a list of JSON objects.*an object with data"),
        ("a.json", json.dumps(ROWS)[:-1], "a.json: no JSON"),
        ("a.json", json.dumps([*ROWS, 1]), "item 21: must be a JSON object; got int"),
        ("a.jsonl", '{"text": "a\\ud83d", "label": "b"}\n' * 20, r"line 1: text holds '\\ud83d', half of"),
        ("a.json", '[{"text": "a", "label": "\\udc00"}]', r"item 1: label holds '\\udc00', half of"),
    ],
)
def test_a_table_is_never_read_as_prose(name, content, words, tmp_path):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=words):
        read_examples(tmp_path / name)


def test_a_text_takes_the_column_text_and_names_the_others(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = write(tmp_path / "a.jsonl", [{**row, "source": "x"} for row in ROWS])
    assert {d for part in load_corpus(path).documents.values() for d in part} == {
        row["text"].encode() for row in ROWS
    }
    assert "learned are text; left out are label, source" in caplog.text
    answers = write(tmp_path / "b.jsonl", [{"prompt": "a", "completion": "b"}] * 20)
    with pytest.raises(ValueError, match=r"must have text; it has prompt, completion; .* in \.txt"):
        load_corpus(answers)


@pytest.mark.parametrize(("encoding", "name"), [("utf-16", "UTF-16"), ("utf-32", "UTF-32")])
def test_another_encoding_is_named(encoding, name, tmp_path):
    for file in ("a.csv", "a.txt"):
        (tmp_path / file).write_text("text,label\n" + "a,b\n" * 20, encoding=encoding)
        with pytest.raises(ValueError, match=f"it is {name} .*iconv -f {name} -t UTF-8"):
            load_corpus(tmp_path / file)


def test_a_conversation_keeps_roles_and_what_is_said(tmp_path):
    said = [{"role": "user", "content": "a", "name": "x"}, {"role": "assistant", "content": "b"}]
    found = read_examples(write(tmp_path / "a.jsonl", [{"messages": said, "id": 1}] * 20))
    assert found.columns == ("messages",)
    assert found.labels == ()
    assert found.train[0].messages == (("user", "a"), ("assistant", "b"))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ("hello", "messages must be a list .* got 'hello'"),
        ([], "must be a list with a message of the user before one of the assistant"),
        ([{"role": "user", "content": "a"}], "before one of the assistant; got user"),
        ([{"role": "assistant", "content": "a"}], "before one of the assistant; got assistant"),
        ([{"role": "user", "content": None}], "message 1 must be an object with role and content, both text"),
        ([{"from": "human", "value": "a"}], "message 1 must be an object with role and content"),
        (["a"], "message 1 must be an object"),
        ([{"role": "user", "content": "\ud83d"}], "message 1 holds '.*ud83d', half of a character"),
    ],
)
def test_a_conversation_that_is_none_is_named(messages, words, tmp_path):
    with pytest.raises(ValueError, match=f"a.jsonl, line 3: .*{words}"):
        read_examples(write(tmp_path / "a.jsonl", ["", "", {"messages": messages}]))
