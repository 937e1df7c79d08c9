"""Token files: what they hold, and that nothing that happens to a disk makes them wrong."""

import errno
import json
import math
import multiprocessing
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nonet.data import Corpus, byte_tokenizer, encode_corpus, load_corpus, tokens

PARTS = {
    "train": [b"one two", "drei vier fünf".encode(), b"", b"six <|end|> seven"],
    "validation": [b"eight"],
    "test": [b"nine", b"ten"],
}
SPLITS = tuple(PARTS)


@pytest.fixture
def corpus():
    return Corpus("numbers", PARTS)


def _words(cut=pre_tokenizers.Whitespace, **special):
    """A tokenizer of whole words over a vocabulary that needs 32 bits, with gaps in its ids."""
    names = ["eight", "nine", "ten", "one", "two", "[UNK]"]
    backend = Tokenizer(
        models.WordLevel({n: 70_000 + 10 * i for i, n in enumerate(names)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = cut()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def _bytes_of(documents):
    return [i for document in documents for i in (*document, 256)]


def test_bytes_are_kept_with_an_end_behind_each_document(corpus, tmp_path):
    encoded = encode_corpus(corpus, cache_dir=tmp_path)
    for split in SPLITS:
        array = getattr(encoded, split)
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable
        assert array.dtype == np.uint16
        assert array.tolist() == _bytes_of(PARTS[split])
    assert encoded.bytes == {split: sum(map(len, PARTS[split])) for split in SPLITS}
    assert encoded.bytes_per_token["validation"] == 5 / 6
    assert (encoded.vocab_size, encoded.eos_id, encoded.tokenizer) == (257, 256, "bytes")
    assert encoded.folder.is_relative_to(tmp_path)


def test_a_transformers_tokenizer_writes_its_own_ids(corpus, tmp_path):
    encoded = encode_corpus(corpus, _words(eos_token="[END]"), cache_dir=tmp_path)
    end = encoded.eos_id
    assert encoded.vocab_size == max(70_050, end) + 1
    assert encoded.test.tolist() == [70_010, end, 70_020, end]
    assert encoded.test.dtype == np.uint32
    assert encoded.bytes_per_token["test"] == 7 / 4


def test_text_that_spells_a_special_token_stays_text(corpus, tmp_path):
    # Unlike the byte tokenizer itself, this one takes <|end|> in a text for the end, unless told not to.
    parsing = PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer().backend_tokenizer, eos_token="<|end|>"
    )
    assert parsing("<|end|>")["input_ids"] == [256]
    assert encode_corpus(corpus, parsing, cache_dir=tmp_path).train.tolist() == _bytes_of(PARTS["train"])


def test_bits_per_byte_do_not_depend_on_the_tokenizer(corpus, tmp_path):
    # A model that gives each byte of the text one bit has this loss a token, however it is cut.
    for tokenizer in ("bytes", _words(eos_token="[END]")):
        encoded = encode_corpus(corpus, tokenizer, cache_dir=tmp_path)
        nats = math.log(2) * encoded.bytes["test"]
        per_token = nats / len(encoded.test)
        assert math.isclose(encoded.bits_per_byte(per_token, "test"), 1.0)


def test_the_second_time_nothing_is_written(corpus, tmp_path, monkeypatch):
    first = encode_corpus(corpus, cache_dir=tmp_path)
    monkeypatch.setattr(tokens, "_write", lambda *_: pytest.fail("written twice"))
    again = encode_corpus(corpus, cache_dir=tmp_path)
    assert again.folder == first.folder
    assert again.train.tolist() == first.train.tolist()


def test_text_tokenizer_and_format_each_have_their_own_folder(corpus, tmp_path, monkeypatch):
    other = Corpus("numbers", {**PARTS, "test": [b"eleven"]})
    folders = [
        encode_corpus(corpus, cache_dir=tmp_path).folder,
        encode_corpus(other, cache_dir=tmp_path).folder,
        encode_corpus(corpus, _words(eos_token="[END]"), cache_dir=tmp_path).folder,
        encode_corpus(corpus, _words(eos_token="ten", pad_token="nine"), cache_dir=tmp_path).folder,
        encode_corpus(corpus, _words(eos_token="nine", pad_token="ten"), cache_dir=tmp_path).folder,
        encode_corpus(
            corpus, _words(pre_tokenizers.WhitespaceSplit, eos_token="[END]"), cache_dir=tmp_path
        ).folder,
    ]
    monkeypatch.setattr(tokens, "FORMAT", tokens.FORMAT + 1)
    folders.append(encode_corpus(corpus, cache_dir=tmp_path).folder)
    assert len(set(folders)) == len(folders) == 7


def test_the_cache_is_where_the_environment_says(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("NONET_CACHE", str(tmp_path / "here"))
    assert encode_corpus(corpus).folder.is_relative_to(tmp_path / "here")
    monkeypatch.delenv("NONET_CACHE")
    monkeypatch.setattr(tokens, "user_cache_path", lambda *_, **__: tmp_path / "user")
    assert encode_corpus(corpus).folder.is_relative_to(tmp_path / "user")


def _shorter(path):
    path.write_bytes(path.read_bytes()[:-1])


def _longer(path):
    path.write_bytes(path.read_bytes() + b"\0")


def _of_another_type(path):
    np.save(path, np.load(path).astype(np.float64))


def _of_another_length(path):
    np.save(path, np.load(path)[1:])


def _pickled(path):
    np.save(path, np.array([object()]), allow_pickle=True)


def _garbage(path):
    path.write_bytes(b"neither numbers nor a summary")


def _of_another_text(path):
    summary = json.loads(path.read_text())
    summary["identity"]["corpus"] = "0" * 64
    path.write_text(json.dumps(summary))


def _emptied(path):
    path.write_bytes(b"")


def _archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("train.npy", b"")


def _folder(path):
    path.unlink()
    path.mkdir()
    (path / "something").write_text("else")


def _link_to_nowhere(path):
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def _pipe(path):
    path.unlink()
    os.mkfifo(path)


def _json(text):
    def damage(path):
        path.write_text(text)

    return damage


def _numbers(value):
    def damage(path):
        summary = json.loads(path.read_text())
        path.write_text(json.dumps({**summary, "tokens": dict.fromkeys(SPLITS, value)}))

    return damage


_OF_ANY = [Path.unlink, _shorter, _garbage, _emptied, _archive, _folder, _link_to_nowhere]
_OF_TOKENS = [
    *_OF_ANY,
    *([_pipe] if hasattr(os, "mkfifo") else []),
    _longer,
    _of_another_type,
    _of_another_length,
    _pickled,
]
_OF_SUMMARIES = [
    *map(_json, ("null", "[]", '"text"', "1", "[" * 100_000, '{"identity": null}')),
    *map(_numbers, (None, "many", -1, 1e400, 1 << 70, [1])),
]
_DAMAGES = [
    *((f"{split}.npy", damage) for split in SPLITS for damage in _OF_TOKENS),
    *(("summary.json", damage) for damage in (*_OF_ANY, *_OF_SUMMARIES, _of_another_text)),
]


@pytest.mark.parametrize(("name", "damage"), _DAMAGES)
def test_a_damaged_cache_is_built_anew(corpus, tmp_path, name, damage):
    folder = encode_corpus(corpus, cache_dir=tmp_path).folder
    whole = (folder / name).read_bytes()
    damage(folder / name)
    encoded = encode_corpus(corpus, cache_dir=tmp_path)
    assert encoded.train.tolist() == _bytes_of(PARTS["train"])
    assert encoded.test.tolist() == _bytes_of(PARTS["test"])
    assert (folder / name).read_bytes() == whole


def test_a_run_that_stops_leaves_nothing_half_written(tmp_path):
    class Stops:
        times = 0

        def __iter__(self):
            self.times += 1
            yield b"text"
            if self.times == 2:  # the first time is for the fingerprint
                raise KeyboardInterrupt

    corpus = Corpus("stops", {**PARTS, "test": Stops()})
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(corpus, cache_dir=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert encode_corpus(corpus, cache_dir=tmp_path).test.tolist() == _bytes_of([b"text"])


def test_what_a_killed_run_left_is_removed(corpus, tmp_path):
    folder = encode_corpus(corpus, cache_dir=tmp_path).folder
    for whole in (True, False):
        left = folder / ".nonet-writing-old"
        left.mkdir()
        (left / "train.npy").write_bytes(b"half")
        if not whole:
            (folder / "summary.json").unlink()
        encode_corpus(corpus, cache_dir=tmp_path)
        assert not left.exists()


def test_a_full_disk_names_the_folder_and_the_need(corpus, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tokens, "_write_header", full)
    need = 2 * sum(len(document) + 1 for documents in PARTS.values() for document in documents)
    with pytest.raises(
        OSError, match=rf"{tmp_path}.*: No space left.*; free some .*NONET_CACHE .* up to {need} bytes"
    ) as e:
        encode_corpus(corpus, cache_dir=tmp_path)
    assert e.value.errno == errno.ENOSPC
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_folder_that_cannot_be_made_says_what_to_do(corpus, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write .*: Not a directory; set NONET_CACHE to another folder"):
        encode_corpus(corpus, cache_dir=tmp_path / "file")


def test_a_text_that_changed_meanwhile_is_not_kept(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("one\n" * 100)
    corpus = load_corpus(path)
    path.write_text("two\n" * 100)
    with pytest.raises(RuntimeError, match=r"text\.txt changed on disk after it was loaded; load it again"):
        encode_corpus(corpus, cache_dir=tmp_path / "cache")
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def _encode_in_a_process(folder, start, results):
    start.wait()
    encoded = encode_corpus(Corpus("numbers", PARTS), cache_dir=folder)
    results.put(encoded.train.tolist())


def test_processes_at_once_agree(tmp_path):
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(3), context.Queue()
    workers = [
        context.Process(target=_encode_in_a_process, args=(tmp_path, start, results)) for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert found == [_bytes_of(PARTS["train"])] * 3
    assert not list(tmp_path.rglob(".nonet-writing-*"))
