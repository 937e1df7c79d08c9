"""Which names are paths, and that the hub is asked only for what is not here, and never for long."""

import http.server
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from nonet.data.tokenizer import load_tokenizer
from nonet.hub import directory, expanded, from_hub


@pytest.mark.parametrize(
    "name",
    [
        "book",
        "./a/book",
        "a/b/book",
        "/book",
        "../book",
        "a/book/",
        "runs/book",
        "here/book",
        "a book/x",
        "a/",
        "/",
    ],
)
def test_a_name_that_looks_like_a_path_is_one(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert directory(name) == Path(name)


@pytest.mark.parametrize("name", ["owner/name", "HuggingFaceTB/SmolLM2-135M", "a/b_c.d-e"])
def test_owner_and_name_are_a_hubs_until_there_is_such_a_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert directory(name) is None
    assert directory(Path(name)) == Path(name)
    (tmp_path / name).mkdir(parents=True)
    assert directory(name) == Path(name)


def test_the_home_directory_is_put_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert directory("~/book") == tmp_path / "book"
    with pytest.raises(ValueError, match="a user who does not exist"):
        expanded("~no-such-user/book")


def read(found):
    """A reader that finds a copy here or not, and notes how it was asked."""
    asked = []

    def one(name, *, local_files_only):
        asked.append(local_files_only)
        if local_files_only and not found:
            raise OSError("no copy")
        return name

    return one, asked


def test_a_copy_here_is_enough():
    one, asked = read(found=True)
    assert from_hub("owner/name", one) == "owner/name"
    assert asked == [True]


def test_a_hub_that_may_not_be_asked_is_not(monkeypatch):
    one, asked = read(found=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match=r"no directory owner/name here.* HF_HUB_OFFLINE is set"):
        from_hub("owner/name", one)
    assert asked == [True]


def test_a_hub_that_cannot_be_reached_is_given_up_at_once(monkeypatch):
    one, asked = read(found=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(OSError, match=r"no directory owner/name here.*127\.0\.0\.1:1 cannot be reached"):
        from_hub("owner/name", one)
    assert time.monotonic() - began < 6
    assert asked == [True]


@pytest.mark.parametrize("status", [200, 403, 404])
def test_a_hub_that_answers_is_asked(status, monkeypatch):
    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    one, asked = read(found=False)
    with http.server.HTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.handle_request).start()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert from_hub("owner/name", one) == "owner/name"
    assert asked == [True, False]


def test_a_tokenizer_is_named_the_same_way(model, tmp_path, monkeypatch):
    monkeypatch.chdir(model.parent)
    assert load_tokenizer(model.name).eos_token_id == load_tokenizer("bytes").eos_token_id == 256
    monkeypatch.setenv("HOME", str(model.parent))
    assert load_tokenizer(f"~/{model.name}").eos_token_id == 256
    for name in ("nowhere", "runs/book"):
        with pytest.raises(ValueError, match="no tokenizer could be loaded"):
            load_tokenizer(name)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set"):
        load_tokenizer("owner/name")
