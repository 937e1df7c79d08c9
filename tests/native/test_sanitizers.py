"""The kernels neither leave their memory nor do what C++ leaves undefined, on any instruction set."""

import shutil
from pathlib import Path

import outside
import pytest

pytestmark = [
    pytest.mark.slow,
    outside.needs_linux,
    outside.needs_compiler,
    outside.needs_library,
    pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake on PATH"),
]

# Every case of every op with kernels, at every length, in both dtypes, along and across the memory.
EVERYTHING = """
import torch
import outside
from nonet import native
from nonet.testing.case import call, cast

def turned(value):
    if not isinstance(value, torch.Tensor) or value.dim() < 2:
        return value
    return value.transpose(-1, -2).contiguous().transpose(-1, -2)

def run(case, function, arguments):
    names = [name for name in case.gradients if arguments.get(name) is not None]
    leaves = {name: arguments[name].clone().requires_grad_() for name in names}
    outs = [out for out in call(function, arguments | leaves) if out.requires_grad]
    if outs:
        torch.autograd.grad([out.sum() for out in outs], list(leaves.values()), allow_unused=True)

library, calls = native.library(), 0
for isa in library.isas():
    library.use_isa(isa)
    for case, op in outside.kernel_cases():
        for dtype in (torch.float32, torch.bfloat16):
            for length in case.lengths:
                arguments = cast(case.make(length, torch.Generator().manual_seed(0)), dtype)
                for given in (arguments, {name: turned(value) for name, value in arguments.items()}):
                    run(case, outside.named(op, "cpu"), given)
                    calls += 1
print(calls, "calls on", *library.isas())
"""
OVERRUN = """
import torch
from nonet.native import CONV, library
x, weight = torch.ones(1, 3, 9), torch.ones(3, 1)
library().call("causal_conv1d", CONV.pack(
    rows=1, channels=3, width=1, length=90, parts=1, x=x, out=x, weight=weight, last=x))
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """Runs code on a library that stops at the first fault."""
    environment = outside.sanitized(tmp_path_factory.mktemp("sanitized"))
    return lambda code: outside.python(
        code, **environment, NONET_ISA=None, PYTHONPATH=str(Path(__file__).parent)
    )


def test_sanitizers_find_nothing(sanitized):
    run = sanitized(EVERYTHING)
    assert run.returncode == 0, run.stderr[-5000:]
    calls = 2 * 2 * sum(len(case.lengths) for case, _ in outside.kernel_cases())
    isas = run.stdout.split()[3:]
    assert run.stdout.startswith(f"{calls * len(isas)} calls on portable")


def test_sanitizers_would_find_an_overrun(sanitized):
    run = sanitized(OVERRUN)
    assert run.returncode != 0
    assert "ERROR: AddressSanitizer" in run.stderr
