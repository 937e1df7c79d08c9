"""The library exports its interface and nothing else, needs little, and is what the Python side believes."""

import re
import struct

import outside
import pytest
import torch

from nonet import native
from nonet.mamba import ops

pytestmark = outside.needs_library
HEADER = outside.HEADER.read_text()


@outside.needs_linux
def test_exported_symbols_are_those_of_the_header():
    promised = re.findall(r"NONET_API [\w ]+?(nonet_\w+)\(", HEADER)
    exported = outside.tool("nm", "-D", "--defined-only", native.library().path)
    assert len(promised) > 10
    assert sorted(line.split()[-1] for line in exported.splitlines()) == sorted(promised)


@outside.needs_linux
def test_it_needs_the_c_library_and_nothing_of_torch_or_of_threads_or_of_cpp():
    needed = re.findall(r"NEEDED.*\[(.*)\]", outside.tool("readelf", "-d", native.library().path))
    assert needed
    assert not [name for name in needed if not re.match(r"lib(c|m|pthread)\.|ld-|libc\.musl", name)]
    symbols = outside.tool("nm", "-D", native.library().path)
    assert not re.search("torch|GOMP|omp_|_ZS|_ZN", symbols)


def test_constants_are_those_of_the_header():
    constants = {name: int(value) for name, value in re.findall(r"\b(NONET_\w+) (?:= )?(\d+)", HEADER)}
    assert constants["NONET_ABI"] == native.ABI
    assert [constants[f"NONET_{isa.upper()}"] for isa in native.ISAS] == [*range(constants["NONET_ISAS"])]
    assert (constants["NONET_FLOAT32"], constants["NONET_BFLOAT16"]) == (
        native.storage(torch.ones(1)),
        native.storage(torch.ones(1, dtype=torch.bfloat16)),
    )
    assert constants["NONET_CHUNK"] == ops._CHUNK
    assert tuple(re.findall(r"NONET_API int nonet_(\w+)\(const Nonet", HEADER)) == native.KERNELS


# Prints every field of every struct with its kind and its place.
STRUCTS = """
#include <cstddef>
#include <cstdio>
#include "nonet.h"
static const char* kind(const int64_t&) { return ""; }
static const char* kind(const double&) { return "~"; }
static const char* kind(const View&) { return "[]"; }
template <class T> static const char* kind(T* const&) { return "*"; }
int main() {
%s
}
"""


@outside.needs_compiler
def test_structs_are_those_of_the_header(tmp_path):
    lines, expected = [], []
    for name, layout in native.LAYOUTS.items():
        lines.append(f'static {name} {name}_; printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {layout.size}")
        for field, (member, offset) in zip(layout.fields, layout.offsets.items(), strict=True):
            place = f"offsetof({name}, {member})"
            lines.append(f'printf("{member}%s %zu\\n", kind({name}_.{member}), {place});')
            expected.append(f"{field} {offset}")
    program = outside.compiled(STRUCTS % "\n".join(lines), tmp_path / "structs", "-std=c++17")
    assert outside.tool(str(program)).splitlines() == expected
    assert set(native.LAYOUTS) == set(re.findall(r"} (Nonet\w+);", HEADER))


def test_a_struct_holds_what_it_was_given():
    weight = torch.arange(6.0).view(2, 3)
    words = struct.unpack("13q", native.Layout("count where* flat[] turned[] none[]").pack(
        count=5, where=weight, flat=weight[1], turned=weight.T, none=None
    )[:104])  # fmt: skip
    start = weight.data_ptr()
    assert words == (15 * 8, 5, start, start + 12, 1, 0, 0, start, 1, 3, 0, 0, 0)
    assert native.Layout("norm~").pack(norm=0.5) == struct.pack("qd", 16, 0.5)
    with pytest.raises(KeyError):
        native.Layout("count").pack(cuont=1)


def test_a_struct_of_another_version_is_refused():
    with pytest.raises(native.NativeError, match=r"selective_scan .* the struct is of another version"):
        native.library().call("selective_scan", native.Layout("only a few").pack())


@pytest.fixture
def library():
    before = native.library().isa
    yield native.library()
    native.library().use_isa(before)


@pytest.mark.parametrize("isa", native.ISAS)
def test_every_instruction_set_can_be_forced(isa, library):
    if isa not in library.isas():
        pytest.skip(f"this processor has no {isa}")
    library.use_isa(isa)
    assert library.isa == isa
    forced = outside.python("from nonet.native import library; print(library().isa)", NONET_ISA=isa)
    assert forced.stdout == f"{isa}\n"


def test_an_instruction_set_that_is_not_there_is_refused(library):
    allowed = f"'mmx' is not to be had here; choose from {', '.join(library.isas())}"
    with pytest.raises(native.NativeError, match=allowed):
        library.use_isa("mmx")
    forced = outside.python("from nonet.native import library; library()", NONET_ISA="mmx")
    assert forced.returncode != 0
    assert allowed in forced.stderr


def test_without_being_told_it_takes_the_widest(library):
    code = "from nonet.native import library; print(library().isa)"
    assert outside.python(code, NONET_ISA=None).stdout == f"{library.isas()[-1]}\n"


def test_rates_are_measured(library):
    for rate in (library.fma_rate, library.exp_rate):
        assert rate(1) > 0
        assert rate(2) > 0


MAPS = """
def maps(*words):
    files = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
    return sorted(file for file in files if any(word in file.rpartition("/")[2] for word in words))
"""


@outside.needs_linux
def test_loading_it_brings_no_second_openmp():
    code = f"""{MAPS}
import torch
torch.ones(1 << 20).exp().sum()
before = maps("gomp", "iomp", "libomp")
from nonet.native import library
assert library().pooled
assert maps("libnonet")
assert len(before) == 1 and maps("gomp", "iomp", "libomp") == before, (before, maps("omp"))
"""
    run = outside.python(code)
    assert run.returncode == 0, run.stderr


@outside.needs_linux
def test_importing_the_module_loads_neither_torch_nor_the_library():
    code = f"{MAPS}\nimport sys, nonet.native\nassert 'torch' not in sys.modules and not maps('libnonet')"
    assert outside.python(code).returncode == 0
