"""``nonet learn``: chapters become notebooks, and those that were changed stay."""

import re

import nbformat
import pytest
from typer.testing import CliRunner

from nonet import methods
from nonet.cli import app
from nonet.extras import pip_install
from nonet.learn import chapters


def invoke(*words):
    return CliRunner().invoke(app, ["learn", *map(str, words)])


def test_nine_notebooks_are_written(tmp_path):
    assert invoke("--write-only", "--out", tmp_path / "new").exit_code == 0
    found = {file.stem: nbformat.read(file, 4) for file in (tmp_path / "new").glob("*.ipynb")}
    assert set(found) == {method.name for method in methods()}
    for notebook in found.values():
        nbformat.validate(notebook)
        assert {cell.cell_type for cell in notebook.cells} == {"markdown", "code"}


def test_a_notebook_that_is_there_stays(tmp_path):
    (tmp_path / "flash.ipynb").write_text("mine")
    assert invoke("--write-only", "--out", tmp_path).exit_code == 0
    assert (tmp_path / "flash.ipynb").read_text() == "mine"


def test_what_a_killed_writer_left_is_removed(tmp_path):
    assert invoke("--write-only", "--out", tmp_path).exit_code == 0
    written = sorted(tmp_path.iterdir())
    (tmp_path / ".nonet-writing-killed").mkdir()
    assert invoke("--write-only", "--out", tmp_path).exit_code == 0
    assert sorted(tmp_path.iterdir()) == written


def test_jupyter_opens_the_chapter(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(chapters, "open_jupyter", lambda place, browser: opened.append((place, browser)) or 0)
    assert invoke("mamba", "--out", tmp_path, "--no-browser").exit_code == 0
    assert invoke("--out", tmp_path).exit_code == 0
    assert opened == [(tmp_path / "mamba.ipynb", False), (tmp_path, True)]


def test_an_unknown_chapter_is_refused_before_anything_is_written(tmp_path):
    done = invoke("mumba", "--out", tmp_path / "new")
    assert done.exit_code == 1
    assert "method='mumba' is not known; choose from flash" in str(done.exception)
    assert not (tmp_path / "new").exists()


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(chapters.shutil, "which", lambda name: None)
    monkeypatch.setattr(chapters.sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ModuleNotFoundError, match=re.escape(pip_install("learn"))):
        chapters.open_jupyter(tmp_path, browser=False)
