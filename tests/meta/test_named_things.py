"""Files, modules and names that documents and docstrings speak of exist, and none lies on one machine."""

import functools
import importlib
import re
from pathlib import PurePosixPath

import project
import pytest

from nonet import methods

FILE = re.compile(r"(?<![\w/.:*<-])((?:[\w.-]+/)*\w[\w.-]*\.(?:py|md|toml|cff|ipynb)|\.ci/\w+)\b(?![/*])")
FOLDER = re.compile(r"(?<![\w/.:*<-])((?:src|tests|docs|benchmarks|csrc)/(?:[\w.-]+/)*)(?![\w.*<-])")
NAME = re.compile(r"(?<![\w./-])(nonet(?:\.[A-Za-z_]\w*)+)")
MACHINE = re.compile(r"(?<![\w.])/(?:work|root|home|tmp/w)\b")


@functools.cache
def known_paths():
    """Every way to name a file by the last parts of its path, and every folder by its whole path."""
    ours = [PurePosixPath(project.name(path)) for path in project.files()]
    ends = {path.parts[start:] for path in ours for start in range(len(path.parts))}
    ends |= {(path.name.split()[-1],) for path in ours}  # the pattern sees the last of several words
    return ends | {folder.parts for path in ours for folder in path.parents}


def dead_paths(text):
    """Paths in a text that no file or folder of the project has."""
    named = {*FILE.findall(text), *FOLDER.findall(text)}
    parts = {name: tuple(p for p in PurePosixPath(name).parts if p not in (".", "..")) for name in named}
    return sorted(name for name in named if parts[name] not in known_paths())


def resolve(dotted):
    """Returns what a dotted name stands for, importing modules on the way; None if there is no such thing."""
    words = dotted.split(".")
    found = importlib.import_module(words[0])
    for end, word in enumerate(words[1:], start=2):
        if word in getattr(found, "__dataclass_fields__", ()):
            return found
        try:
            found = getattr(found, word)
        except (AttributeError, ImportError):
            try:
                found = importlib.import_module(".".join(words[:end]))
            except ImportError:
                return None
    return found


def test_paths_exist():
    assert not {(project.name(path), dead) for path, text in project.prose() for dead in dead_paths(text)}


@pytest.mark.parametrize(
    "text", ["`src/nonet/gone.py`", "see gone.py.", "in `tests/gone/`:", "[a](docs/gone.md)"]
)
def test_a_dead_path_is_noticed(text):
    assert dead_paths(text)


@pytest.mark.parametrize(
    "text", ["`reference.py`", "(../DESIGN.md)", "in `tests/meta/`, and", "`.ci/run`", "*.py"]
)
def test_a_living_path_is_not(text):
    assert not dead_paths(text)


def test_names_exist():
    said = {(project.name(path), name) for path, text in project.prose() for name in NAME.findall(text)}
    assert not {(path, name) for path, name in said if resolve(name) is None}


@pytest.mark.parametrize("name", ["nonet.gone", "nonet.flash.gone", "nonet.flash.FlashConfig.gone"])
def test_a_dead_name_is_noticed(name):
    assert NAME.findall(f"Calls :func:`{name}`.") == [name]
    assert resolve(name) is None


@pytest.mark.parametrize(
    "name", ["nonet.flash.api", "nonet.flash.flash_attention", "nonet.registry.Part.slot"]
)
def test_a_living_name_is_not(name):
    assert resolve(name) is not None


@pytest.mark.parametrize("method", methods(), ids=lambda m: m.name)
def test_every_method_has_a_short_page_of_its_own(method):
    page = project.read(project.SOURCE / method.name / "README.md")
    assert page.count("\n") <= 100
    assert f"arxiv.org/abs/{method.papers[0]}" in page
    for title in ("What differs from the paper", "When not to use it", "Cost", "How it is tested"):
        assert f"\n## {title}" in page, title


def test_nothing_names_a_path_of_one_machine():
    texts = {*project.documents(), *project.python(), project.ROOT / "Makefile", project.ROOT / ".ci" / "run"}
    assert not [project.name(path) for path in texts if MACHINE.search(project.read(path))]
    assert MACHINE.search("see /" + "work/main")
