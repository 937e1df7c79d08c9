"""The gate runs what it promises, with the versions that are pinned, and the papers are cited."""

import os
import re
import tomllib
from importlib import metadata

import project
import pytest
import yaml
from packaging.requirements import Requirement

import nonet

PROJECT = tomllib.loads(project.read(project.ROOT / "pyproject.toml"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


def named(requirements):
    return {Requirement(requirement).name for requirement in requirements}


DIRECT = named(PROJECT["dependencies"]).union(*map(named, EXTRAS.values()))
GATE = named(PROJECT["dependencies"] + EXTRAS["dev"] + EXTRAS["report"])  # a reader's JupyterLab is not in it
PINS = dict(
    line.strip().split("==")
    for line in project.read(project.ROOT / "constraints.txt").splitlines()
    if line.strip() and not line.startswith("#")
)


def test_gate_runs_every_tool_then_the_whole_suite_then_other_versions():
    [recipe] = re.findall(r"^test:.*\n((?:\t.*\n)+)", project.read(project.ROOT / "Makefile"), re.M)
    steps = [line.strip().removeprefix("$(BIN)/") for line in recipe.splitlines()]
    assert {"ruff check .", "ruff format --check .", "mypy", "lint-imports"} <= set(steps)
    assert any("--jaxtyping-packages='nonet,$(CHECKER)'" in step for step in steps)
    whole = "pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder"  # nothing is left out
    assert steps[-2:] == [whole, "$(MAKE) --no-print-directory test-versions"]


def test_gate_treats_warnings_as_errors(pytestconfig):
    assert "error" in pytestconfig.getini("filterwarnings")


def test_continuous_integration_runs_the_gate():
    script = project.ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert project.read(script).endswith("\nexec make test\n")


def test_every_direct_dependency_is_pinned():
    assert not {name.lower() for name in DIRECT} - set(PINS)


@pytest.mark.parametrize("name", sorted(GATE))
def test_installed_version_is_the_pinned_one(name):
    assert metadata.version(name).partition("+")[0] == PINS[name.lower()]


def test_nothing_leaves_the_machine():
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


def test_version_is_one():
    citation = yaml.safe_load(project.read(project.ROOT / "CITATION.cff"))
    assert nonet.__version__ == PROJECT["version"] == str(citation["version"])
    assert f"## [{nonet.__version__}]" in project.read(project.ROOT / "CHANGELOG.md")


def test_citation_is_complete():
    citation = yaml.safe_load(project.read(project.ROOT / "CITATION.cff"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["title"]
    assert citation["authors"]
    for paper in citation["references"]:
        assert {"type", "title", "authors", "year", "url"} <= set(paper)
        for author in paper["authors"]:
            assert set(author) in ({"name"}, {"given-names", "family-names"})
    cited = {paper["url"].rpartition("/")[2] for paper in citation["references"]}
    in_table = set(re.findall(r"\[(\d{4}\.\d{5})\]", project.read(project.ROOT / "README.md")))
    assert len(in_table) == 9
    assert in_table <= cited
    assert {method.papers[0] for method in nonet.methods()} <= in_table
