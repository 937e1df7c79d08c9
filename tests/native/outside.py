"""What the tests of this folder run outside of their own process, and which ops they are about."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from nonet import methods, native
from nonet.registry import load
from nonet.testing.case import cases

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "csrc" / "common" / "nonet.h"
COMPILER = next(filter(None, map(shutil.which, [os.environ.get("CXX", "c++"), "g++", "clang++"])), None)

needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on PATH")
needs_library = pytest.mark.skipif(native.absence() is not None, reason="the C library was not built")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux tells")


def tool(name, *arguments):
    """Returns what a program prints; skips where it is not installed."""
    if shutil.which(name) is None:
        pytest.skip(f"no {name} on PATH")
    return subprocess.run([name, *map(str, arguments)], capture_output=True, text=True, check=True).stdout


def compiled(source, target, *flags):
    """Returns the file that C++ was compiled to."""
    path = target.with_suffix(".cpp")
    path.write_text(source)
    command = [COMPILER, *flags, "-I", HEADER.parent, path, "-o", target]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return target


def sanitized(folder):
    """Builds the library so that it stops at the first fault; returns the environment of a process with it.

    Skips where the compiler lacks a sanitizer.
    """
    runtimes = []
    for name in ("libasan.so", "libubsan.so", "libstdc++.so.6"):
        [path] = tool(COMPILER, f"-print-file-name={name}").split()
        if not Path(path).is_absolute():
            pytest.skip(f"the compiler has no {name}")
        runtimes.append(path)
    options = ("-DNONET_SANITIZE=ON", "-DNONET_WERROR=ON", f"-DCMAKE_CXX_COMPILER={COMPILER}")
    tool("cmake", "-S", ROOT, "-B", folder, *options)
    tool("cmake", "--build", folder, "-j2")
    return {
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",
        "NONET_LIBRARY": str(folder / "libnonet.so"),
    }


def python(code, limit=250, **variables):
    """Runs code in a fresh interpreter, with variables set in its environment, or with None taken out."""
    environment = {k: v for k, v in {**os.environ, **variables}.items() if v is not None}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=limit
    )


def kernel_cases():
    """(case, op) of every way to call an op that has kernels; without gradients where they have none."""
    for method in methods():
        for case in cases(method):
            op = method.op(case.op)
            for implementation in op.implementations:
                if implementation.name == "cpu":
                    forward = "gradient" in implementation.refuses
                    yield (replace(case, gradients=()) if forward else case), op


@cache
def named(op, impl):
    """Returns an op that runs one implementation."""
    api = load(op.api)
    return lambda **arguments: api(**arguments, impl=impl)
