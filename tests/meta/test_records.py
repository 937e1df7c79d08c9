"""What the registry and the tables of public names say can be had."""

import collections
import dataclasses
import importlib
import inspect
import itertools
import json
import pkgutil
import types
import typing

import pytest

import nonet
from nonet.registry import RESIDUALS, SLOTS, load, methods, parts

PACKAGES = ["nonet", *(m.name for m in pkgutil.walk_packages(nonet.__path__, "nonet.") if m.ispkg)]
PUBLIC = [
    (package, name)
    for package in PACKAGES
    for name in getattr(importlib.import_module(package), "__all__", ())
    if not name.startswith("_")
]
PARTS = [part for slot in SLOTS for part in parts(slot)]
CONFIGS = sorted({part.config for part in PARTS if part.config})


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_public_name_exists_and_says_what_it_is(package, name):
    value = getattr(importlib.import_module(package), name)
    if inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value):
        assert value.__doc__, f"{package}.{name} has no docstring"
        assert not value.__doc__.startswith(f"{name}("), f"{package}.{name} has no docstring of its own"


def test_dir_lists_public_names():
    modules = [importlib.import_module(package) for package in PACKAGES]
    lazy = [module for module in modules if hasattr(module, "_HOMES")]
    assert {"nonet", "nonet.testing"} <= {module.__name__ for module in lazy}
    for module in lazy:
        assert set(module._HOMES) <= set(dir(module)) & set(module.__all__), module.__name__


@pytest.mark.parametrize("method", methods(), ids=lambda m: m.name)
def test_ops_load_with_the_oracle_last(method):
    for op in method.ops:
        assert callable(load(op.api))
        for implementation in op.implementations:
            assert callable(load(implementation.target))
        assert [i.name for i in op.implementations].index("reference") == len(op.implementations) - 1
    own = {op.name for op in method.ops}
    for part in method.parts:
        assert set(part.ops) <= own
        assert part.slot in method.slots or part.role == "variant"


@pytest.mark.parametrize("part", PARTS, ids=lambda p: f"{p.slot}-{p.name}")
def test_part_loads(part):
    made = load(part.target)
    modules = part.slot in ("mixer", "position", "linear")  # what fills a place inside of the model
    assert inspect.isclass(made) if modules else callable(made)
    assert part.title


def test_parts_can_be_told_apart():
    assert len({part.name for part in PARTS}) == len(PARTS)
    mixers = parts("mixer")
    assert all(len(part.letter) == 1 for part in mixers)
    assert len({part.letter for part in mixers}) == len(mixers)


def test_residuals_load():
    assert all(callable(load(target)) for target in RESIDUALS.values() if target)


@pytest.mark.parametrize("target", CONFIGS)
def test_options_are_a_small_frozen_dataclass(target):
    config = load(target)
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen
    assert len(dataclasses.fields(config)) <= 8
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config(), dataclasses.fields(config)[0].name, None)


def _choices(hint):
    """Values that a type hint enumerates, inside of unions too."""
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return list(itertools.chain.from_iterable(_choices(inner) for inner in typing.get_args(hint)))


@pytest.mark.parametrize("target", CONFIGS)
def test_every_enumerated_choice_constructs(target):
    config = load(target)
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        for choice in _choices(hints[field.name]):
            assert getattr(config(**{field.name: choice}), field.name) == choice


def test_choices_are_found_inside_of_unions():
    assert _choices(typing.Literal["a"] | int | typing.Literal["b"]) == ["a", "b"]


# Records that nonet makes for its users; all other public dataclasses are made by them.
MADE_HERE = {"Method", "Report", "PackedTernary", "Case", "EncodedCorpus"}
# Every field of the others that holds a tuple, with what may be typed for it.
LISTS = {
    ("LoraConfig", "targets"): (["q_proj", ["v_proj", 4, 8.0]], {}),
    ("LoraConfig", "variants"): (["dora", "rslora"], {}),
    ("LoraConfig", "full"): (["lm_head"], {}),
    ("PromptTuning", "text"): (["good", "bad"], {"start": "labels"}),
    ("TandemConfig", "layers"): ([0, 2], {}),
    ("AxialConfig", "shape"): ([8, 8], {}),
    ("AxialConfig", "widths"): ([16, 16], {}),
    ("LongRoPE", "short_factor"): ([1.0, 2.0], {"factor": 2.0, "original_length": 8, "long_factor": [1.0]}),
    ("LongRoPE", "long_factor"): ([1.0, 2.0], {"factor": 2.0, "original_length": 8, "short_factor": [1.0]}),
    ("Example", "messages"): ([["user", "a"], ["assistant", "b"]], {"text": "a"}),
    ("Examples", "columns"): (["text"], {"name": "x", "train": [], "validation": [], "test": []}),
    ("Examples", "train"): ([], {"name": "x", "columns": ["text"], "validation": [], "test": []}),
    ("Examples", "validation"): ([], {"name": "x", "columns": ["text"], "train": [], "test": []}),
    ("Examples", "test"): ([], {"name": "x", "columns": ["text"], "train": [], "validation": []}),
}
OBJECTS = {("Ensemble", "pets"), ("Ensemble", "weights")}  # of models; held by the tests of ensembles


def _holds_tuples(hint):
    """Whether a value of a type can be a tuple, inside of unions too; what a mapping holds does not count."""
    if typing.get_origin(hint) in (tuple, collections.abc.Sequence):
        return True
    united = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return united and any(map(_holds_tuples, typing.get_args(hint)))


def _tuple_fields():
    found = {}
    for package, name in PUBLIC:
        kind = getattr(importlib.import_module(package), name)
        if not (inspect.isclass(kind) and dataclasses.is_dataclass(kind)) or name in MADE_HERE:
            continue
        if kind.__dataclass_params__.frozen:
            hints = typing.get_type_hints(kind)
            found |= {(name, f.name): kind for f in dataclasses.fields(kind) if _holds_tuples(hints[f.name])}
    return found


def test_every_field_that_holds_a_tuple_is_listed():
    assert set(_tuple_fields()) == {*LISTS, *OBJECTS}


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@pytest.mark.parametrize("field", LISTS, ids=".".join)
def test_a_list_serves_where_a_tuple_does_and_json_gives_back_what_was_written(field):
    kind, (value, others) = _tuple_fields()[field], LISTS[field]
    made = kind(**others, **{field[1]: value})
    assert getattr(made, field[1]) == _tuples(value)
    assert made == kind(**others, **{field[1]: _tuples(value)})
    assert hash(made) == hash(kind(**others, **{field[1]: _tuples(value)}))
    written = {f.name: getattr(made, f.name) for f in dataclasses.fields(made) if f.init}
    assert kind(**json.loads(json.dumps(written))) == made
