"""Every method has a chapter of the same shape, that shows the library's code and redefines none of it."""

import ast
import itertools
import re
from pathlib import Path

import jupytext
import pytest

from nonet import methods
from nonet.learn import LOOKS

ROOT = Path(__file__).resolve().parents[2]
CHAPTERS = ROOT / "docs" / "methods"
NAMES = [method.name for method in methods()]
HEADINGS = [
    "The idea",
    "The mathematics",
    "A simple implementation",
    "The check",
    "Play",
    "A measurement",
    "What the papers claim, and what was found",
    "When not to use it",
    "Exercise",
]
CALLS = ["canvas", "show", "show_source", "show_implementations", "play", "show_claims"]
LONGEST = 12


def cells(name, kind):
    found = jupytext.read(CHAPTERS / f"{name}.py", fmt="py:percent").cells
    return [cell for cell in found if cell.cell_type == kind]


def code(name):
    return ast.parse("\n".join(cell.source for cell in cells(name, "code")))


def prose(name):
    return "\n\n".join(cell.source for cell in cells(name, "markdown"))


def test_there_is_a_chapter_a_method_and_no_other():
    assert sorted(file.stem for file in CHAPTERS.glob("*.py")) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_chapters_tell_their_story_in_one_order(name):
    text = re.sub(r"^```.*?^```", "", prose(name), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    assert len(re.findall(r"^# ", text, re.MULTILINE)) == 1
    assert "<details><summary>Answer</summary>" in text


@pytest.mark.parametrize("name", NAMES)
def test_chapters_show_the_library_and_define_nothing_it_has(name):
    tree = code(name)
    nodes = list(ast.walk(tree))
    assert not [node.name for node in nodes if isinstance(node, ast.ClassDef)]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert not {f.name: n for f in functions if (n := f.end_lineno - f.lineno + 1) > LONGEST}
    called = {node.func.attr for node in nodes if isinstance(node, ast.Call) if hasattr(node.func, "attr")}
    assert set(CALLS) <= called
    assert {"check", "check_op"} & called
    assert any(isinstance(node, ast.Assert) for node in nodes)


@pytest.mark.parametrize("name", NAMES)
def test_the_front_door_gets_idea_mathematics_implementation_and_check(name):
    found = jupytext.read(CHAPTERS / f"{name}.py", fmt="py:percent").cells
    marked = [cell for cell in found if "front" in cell.metadata.get("tags", ())]
    text = "\n".join(cell.source for cell in marked)
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS[:4]
    assert "show_source(" in text
    assert "learn.check" in text or "assert " in text


def contrast(a, b):
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("page", ["#ffffff", "#fbfaf8", "#131416", "#0d1117", "#111111", "#1c1e22"])
def test_pictures_can_be_read_on_light_and_dark_pages(page):
    assert contrast("#ffffff", "#000000") == 21
    assert all(contrast(look.colour, page) >= 3 for look in LOOKS.values())


def test_no_two_methods_are_told_apart_by_colour_alone():
    assert set(LOOKS) == {*NAMES, "baseline"}
    for a, b in itertools.combinations(LOOKS.values(), 2):
        assert a.colour != b.colour
        assert a.marker != b.marker
        assert a.dash != b.dash
