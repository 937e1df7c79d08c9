"""The versions of Transformers, and the names that a cache has in them."""

import importlib
import sys
import tomllib
import warnings
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from transformers import GPT2Model, LlamaForCausalLM, MambaForCausalLM
from transformers.modeling_outputs import CausalLMOutputWithPast

import nonet
from nonet import ecosystem
from nonet.ecosystem import (
    CACHE,
    CACHE_NAMES,
    NEWEST,
    OLDEST,
    cache_argument,
    cache_name,
    given_cache,
    refuse_unknown,
    returned_cache,
)


@pytest.fixture
def read_again(monkeypatch):
    """Reads the module as it is first read beside another version of Transformers."""

    def read(version):
        monkeypatch.setattr("transformers.__version__", version)
        monkeypatch.delitem(sys.modules, "nonet.ecosystem")
        monkeypatch.setattr(nonet, "ecosystem", ecosystem)  # put back afterwards
        return importlib.import_module("nonet.ecosystem")

    return read


def test_an_older_version_is_refused_by_name(read_again):
    with pytest.raises(ImportError, match=rf"Transformers 5\.22\.1 is installed, and nonet needs {OLDEST}"):
        read_again("5.22.1")


@pytest.mark.parametrize("version", ["5.99.0", "6.0.0.dev0"])
def test_a_newer_version_warns_with_those_that_were_tested(read_again, version):
    with pytest.warns(UserWarning, match=f"Transformers {version} .* tested with {OLDEST} to {NEWEST}"):
        read_again(version)


@pytest.mark.parametrize("version", [OLDEST, NEWEST, NEWEST.rpartition(".")[0] + ".7"])
def test_a_tested_version_says_nothing(read_again, version):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_again(version)


def test_the_package_asks_for_the_oldest_version():
    project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
    [asked] = [r for r in map(Requirement, project["dependencies"]) if r.name == "transformers"]
    assert asked.specifier.contains(OLDEST)
    assert not asked.specifier.contains("5.22.1")


def test_every_model_takes_its_cache_by_a_known_name():
    assert {cache_name(m.forward) for m in (LlamaForCausalLM, GPT2Model)} == {CACHE}
    assert cache_name(MambaForCausalLM.forward) in CACHE_NAMES
    assert cache_argument(LlamaForCausalLM.forward, "it") == {CACHE: "it"}


def test_a_function_without_a_cache_is_told_apart():
    def forward(input_ids):
        pass

    assert cache_name(forward) is None
    with pytest.raises(ValueError, match="forward takes no cache"):
        cache_argument(forward, "it")


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_cache_is_found_under_each_name(name):
    assert given_cache({"input_ids": 1, name: "it"}) == "it"
    assert given_cache({name: None}) is None
    with pytest.raises(ValueError, match="one argument under two names"):
        given_cache({name: "it", next(other for other in CACHE_NAMES if other != name): "that"})


def test_a_cache_is_found_in_outputs():
    assert returned_cache(CausalLMOutputWithPast(**{CACHE: "it"})) == "it"
    assert returned_cache(CausalLMOutputWithPast()) is None


def test_what_is_not_understood_is_named():
    refuse_unknown("f", {"a": None, "b": 1}, known=("b",))
    with pytest.raises(TypeError, match="f does not understand a, c; leave it out"):
        refuse_unknown("f", {"c": 0, "b": 1, "a": False}, known=("b",))
