import warnings

import pytest
import torch

from nonet import methods, native
from nonet import select as selection
from nonet.registry import Implementation, Method, Op, load, method, part
from nonet.select import Choice, UnsupportedError, absent, select

OP = Op(
    "op",
    "nonet:op",
    (
        Implementation("triton", "a:b", devices=("cuda",), dtypes=("float16",)),
        Implementation("cpu", "a:b", devices=("cpu",), refuses=("bias",)),
        Implementation("reference", "a:b"),
    ),
)


@pytest.mark.parametrize(
    ("device", "dtype", "options", "choice"),
    [
        ("cuda", "float16", (), Choice("triton", "preferred, and able")),
        ("cpu", "float32", (), Choice("cpu", "triton does not run on cpu")),
        (
            "cpu",
            "float32",
            ("bias",),
            Choice("reference", "triton does not run on cpu; cpu cannot serve bias"),
        ),
        (
            "cuda",
            "float32",
            (),
            Choice("reference", "triton does not take float32; cpu does not run on cuda"),
        ),
    ],
)
def test_auto_takes_the_first_that_can_serve_and_says_what_stood_before_it(device, dtype, options, choice):
    assert select(OP, device, dtype, frozenset(options)) == choice


def test_a_named_implementation_serves_or_raises():
    assert select(OP, "cpu", "float32", impl="reference") == Choice("reference", "named by the caller")
    with pytest.raises(UnsupportedError, match=r"cpu cannot serve bias; these can: reference"):
        select(OP, "cpu", "float32", frozenset({"bias"}), impl="cpu")
    with pytest.raises(UnsupportedError, match="impl='fast' does not exist for op; choose from auto, triton"):
        select(OP, "cpu", "float32", impl="fast")
    alone = Op("op", "nonet:op", OP.implementations[:1])
    with pytest.raises(UnsupportedError, match="triton does not run on cpu"):
        select(alone, "cpu", "float32")


def test_what_this_machine_lacks_is_passed_over_with_the_reason():
    missing = {"cpu": "not built"}
    choice = select(OP, "cpu", "float32", missing=missing)
    assert choice == Choice("reference", "triton does not run on cpu; cpu is missing: not built")
    with pytest.raises(UnsupportedError, match="op: cpu is missing: not built; these can: reference"):
        select(OP, "cpu", "float32", impl="cpu", missing=missing)
    with pytest.raises(UnsupportedError, match="cpu does not run on cuda"):
        select(OP, "cuda", "float32", impl="cpu", missing=missing)


def test_only_an_op_with_kernels_asks_for_the_library(monkeypatch):
    monkeypatch.setattr(native, "absence", lambda: "not built")
    assert absent(OP, "cpu") == {"cpu": "not built"}
    assert absent(OP, "cuda") == {}
    assert absent(Op("op", "nonet:op", OP.implementations[2:]), "cpu") == {}
    monkeypatch.setattr(native, "absence", lambda: None)
    assert absent(OP, "cpu") == {}


@pytest.fixture
def kernels(monkeypatch):
    """A registry of one op whose implementations are ``cpu`` and ``reference``, and nothing chosen yet."""
    op = Op(
        "power",
        "nonet:power",
        (Implementation("cpu", "math:exp", devices=("cpu",)), Implementation("reference", "math:exp2")),
    )
    known = (Method("m", "M", ("mixer",), (), "", "", ops=(op,)),)
    monkeypatch.setattr(selection, "methods", lambda: known)
    monkeypatch.setattr(selection, "_names", {})
    selection._warn.cache_clear()
    yield op
    selection._warn.cache_clear()


def test_a_missing_library_is_told_once_and_only_where_it_matters(kernels, monkeypatch):
    monkeypatch.setattr(native, "absence", lambda: "not built")
    x = torch.ones(1)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert selection.implementation(kernels, "reference", x)(3) == 8
        assert not told
        for dtype in (torch.float32, torch.bfloat16, torch.float32):
            assert selection.implementation(kernels, "auto", x.to(dtype))(3) == 8
    [warning] = told
    assert warning.category is UserWarning
    assert str(warning.message) == "power run on torch, which is slower: not built"
    with pytest.raises(UnsupportedError, match="cpu is missing: not built"):
        selection.implementation(kernels, "cpu", x)


def test_a_broken_library_is_an_error_unless_another_is_named(kernels, monkeypatch):
    def broken():
        raise native.NativeError("broken")

    monkeypatch.setattr(native, "absence", broken)
    for impl in ("auto", "cpu"):
        with pytest.raises(native.NativeError, match="broken"):
            selection.implementation(kernels, impl, torch.ones(1))
    assert selection.implementation(kernels, "reference", torch.ones(1))(3) == 8


@pytest.mark.parametrize("each", methods(), ids=lambda m: m.name)
def test_every_name_in_a_record_leads_to_code(each):
    for op in each.ops:
        assert callable(load(op.api))
        assert op.implementations[-1].name == "reference"
        for implementation in op.implementations:
            assert callable(load(implementation.target))
    for brought in each.parts:
        assert callable(load(brought.target))
        assert brought.config is None or load(brought.config)() is not None
        assert all(each.op(name) for name in brought.ops)


def test_unknown_names_say_which_are_known():
    with pytest.raises(ValueError, match="method='gpt' is not known; choose from flash"):
        method("gpt")
    with pytest.raises(ValueError, match="linear='sparse' is not known; choose from"):
        part("linear", "sparse")
