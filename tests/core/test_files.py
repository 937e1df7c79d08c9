"""Files of others are read whole, or refused with one sentence that names them."""

import re

import pytest
import torch
from safetensors.torch import save_file

from nonet.files import read_json, read_tensors


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is no JSON: Expecting value"),
        (b'{"r": 8,', "is no JSON: Expecting property name"),
        (b"\xff\xfe{", "is no JSON: "),
        (b'{"text": "\\ud83d"}', "is no JSON: 'utf-8' codec can't encode"),
        (b"[" * 100_000, "is no JSON: maximum recursion depth"),
        (b"[1, 2]", "must hold a JSON object, {...}; got a list"),
        (b"null", "must hold a JSON object, {...}; got a NoneType"),
    ],
)
def test_a_file_that_holds_no_object_is_named(content, why, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'config.json'} {why}")):
        read_json(tmp_path / "config.json")


def test_an_object_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"name": "é", "r": [1, 2.5, null]}', encoding="utf-8")
    assert read_json(str(tmp_path / "config.json")) == {"name": "é", "r": [1, 2.5, None]}


def test_tensors_are_read(tmp_path):
    tensors = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "weights.safetensors")
    found = read_tensors(tmp_path / "weights.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert found["b"].dtype == torch.bfloat16


@pytest.mark.parametrize("kept", [0, 4, 8, 30, -1])
def test_a_file_that_is_cut_short_is_named(kept, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(2, 3)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    size = path.stat().st_size
    with pytest.raises(
        ValueError, match=re.escape(f"{path} is no whole safetensors file ({size:,} bytes): ")
    ):
        read_tensors(path)


def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    for content in (b"version https://git-lfs.github.com/spec/v1\n", b"\x80\x02}q\x00." + bytes(200)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is no whole safetensors file.*; write or copy the file again"):
            read_tensors(path)


def test_a_folder_in_the_place_of_weights_is_named(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} must be a safetensors file; it is a folder")):
        read_tensors(tmp_path)


def test_a_file_that_is_not_there_is_another_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "config.json")
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "weights.safetensors")
