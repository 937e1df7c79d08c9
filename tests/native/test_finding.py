"""No library, a broken one and another's are told apart, by the loader and by the ops."""

import functools
import shutil
from importlib import metadata
from pathlib import Path

import outside
import pytest
import torch

import nonet
from nonet import native, select
from nonet.mamba import causal_conv1d

OPS = sorted({op.name for _, op in outside.kernel_cases()})
# An installation without the library, and a call of an op that has kernels.
PURE = """
import warnings
from nonet import native
native._folders = lambda: []
"""
CALL = """
import torch
from nonet.mamba import causal_conv1d
def call(impl):
    causal_conv1d(torch.ones(1, 5, 7), torch.ones(5, 4), impl=impl)
"""


def run(code):
    return outside.python(code, NONET_LIBRARY=None, NONET_ISA=None)


def last_line(code):
    """What an error that ends the process says."""
    ended = run(code)
    assert ended.returncode == 1, ended
    return ended.stderr.splitlines()[-1]


def test_there_is_a_library_where_a_compiler_is():
    if outside.COMPILER is None or shutil.which("cmake") is None:
        pytest.skip("no compiler")
    assert native.absence() is None, "cmake -S . -B build/native && cmake --build build/native says why"


def test_every_folder_of_the_package_is_searched(tmp_path, monkeypatch):
    monkeypatch.delenv("NONET_LIBRARY", raising=False)
    monkeypatch.setattr(native, "_folders", lambda: [tmp_path / "sources", tmp_path])
    assert native._file() is None
    (tmp_path / native._NAME).touch()
    assert native._file() == tmp_path / native._NAME


def test_the_package_is_found_by_its_importer_and_by_its_installer(monkeypatch, tmp_path):
    installed = Path(metadata.distribution("nonet").locate_file("nonet"))
    monkeypatch.setattr(nonet, "__path__", [str(tmp_path)])
    assert native._folders() == [tmp_path, installed]


def test_a_pure_installation_runs_on_torch_and_says_so_once():
    said = last_line(f"{PURE}\nnative.library()")
    assert "which takes GCC or Clang; to get it, install one of them and run pip install" in said
    ended = run(f"{PURE}{CALL}\nwarnings.simplefilter('always')\ncall('auto')\ncall('auto')\ncall('torch')")
    assert ended.returncode == 0, ended.stderr
    [warning] = [line for line in ended.stderr.splitlines() if "UserWarning" in line]
    assert all(op in warning for op in OPS)
    assert warning.endswith(said.partition(": ")[2])
    quiet = run(f"{PURE}{CALL}\ncall('torch')\ncall('reference')")
    assert (quiet.returncode, quiet.stderr) == (0, "")


@pytest.fixture
def anew(monkeypatch):
    """The process as it was before it looked for a library."""
    for function in (native.library, native.absence):
        monkeypatch.setattr(native, function.__name__, functools.cache(function.__wrapped__))
    monkeypatch.setattr(select, "_names", {})
    for variable in ("NONET_LIBRARY", "NONET_ISA"):
        monkeypatch.delenv(variable, raising=False)


def call(impl):
    causal_conv1d(torch.ones(1, 5, 7), torch.ones(5, 4), impl=impl)


def test_a_kernel_that_was_asked_for_is_not_replaced(anew, monkeypatch):
    monkeypatch.setattr(native, "_folders", list)
    with pytest.raises(select.UnsupportedError, match="impl='cpu' cannot serve this call") as raised:
        call("cpu")
    assert "cpu is missing: the C library was not built" in str(raised.value)


@pytest.fixture(scope="module")
def another(tmp_path_factory):
    """Libraries that are not ours, and files that are none."""
    folder = tmp_path_factory.mktemp("libraries")
    found = {"absent": folder / "none.so", "empty": folder / "empty.so", "text": folder / "text.so"}
    found["empty"].touch()
    found["text"].write_text("no library")
    if outside.COMPILER is not None:
        for name, source in {
            "newer": 'extern "C" long long nonet_abi() { return 99; }',
            "foreign": 'extern "C" int something() { return 1; }',
            "gutted": f'extern "C" long long nonet_abi() {{ return {native.ABI}; }}',
        }.items():
            found[name] = outside.compiled(source, folder / f"{name}.so", "-shared", "-fPIC")
    if native.absence() is None:
        whole = native.library().path.read_bytes()
        for name, length in {"beginning": 40, "first page": 4096, "half": len(whole) // 2}.items():
            found[name] = folder / f"{name}.so"
            found[name].write_bytes(whole[:length])
    return found


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("absent", "No such file or directory"),
        ("empty", "file too short"),
        ("text", "cannot be loaded"),
        ("newer", f"has version 99 of the C interface, this nonet needs {native.ABI}"),
        ("foreign", "undefined symbol: nonet_abi"),
        ("gutted", "undefined symbol: nonet_selective_scan"),
        ("beginning", "file too short"),
        ("first page", "ends early"),
        ("half", "ends early"),
    ],
)
@outside.needs_linux
def test_a_library_that_cannot_be_used_is_an_error(name, complaint, another, anew, monkeypatch):
    if name not in another:
        pytest.skip("needs a compiler, or the library")
    monkeypatch.setenv("NONET_LIBRARY", str(another[name]))
    said = set()
    for function, *arguments in ((native.absence,), (native.library,), (call, "auto"), (call, "cpu")):
        with pytest.raises(native.NativeError) as raised:
            function(*arguments)
        said.add(str(raised.value))
    call("torch")
    [said] = said
    assert complaint in said
    assert str(another[name]) in said
    assert said.endswith("NONET_LIBRARY names it")
