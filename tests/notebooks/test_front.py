"""The notebook at the root shows what its sources say, and every cell of it has run."""

import importlib
from pathlib import Path

import nbformat
import pytest

from nonet import methods

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def builder():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS))
        yield importlib.import_module("notebook")


@pytest.fixture(scope="module")
def stored(builder):
    return nbformat.read(builder.NOTEBOOK, 4)


def test_it_is_up_to_date(builder, stored):
    assert not builder.stale(), "run python docs/notebook.py --write"
    assert [cell.source for cell in stored.cells] == [cell.source for cell in builder.built().cells]


def test_a_change_is_noticed(builder, monkeypatch):
    shown = builder._shown()
    monkeypatch.setattr(builder, "_shown", lambda: [*shown, __file__])
    assert builder.stale()


def test_every_cell_has_run_and_none_failed(stored):
    nbformat.validate(stored)
    code = [cell for cell in stored.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert not [output.text for output in outputs if output.get("name") == "stderr"]


def test_it_has_a_section_a_method_with_its_code_and_the_way_on(stored):
    text = "\n".join(cell.source for cell in stored.cells)
    for number, method in enumerate(methods(), 1):
        assert f"## {number}. {method.title}" in text
        assert f"(docs/methods/{method.name}.py)" in text
        assert f"| [{method.title}]" in text
    assert text.count("show_source(") >= len(methods())


def test_it_names_no_place_of_one_machine(stored):
    assert "/" + "work/" not in nbformat.writes(stored)
