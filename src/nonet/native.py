"""The C library of kernels: where it lies, how it is loaded, and how its functions are called.

The library is loaded on first use and runs on torch's own threads, so that ``torch.set_num_threads``
governs it. Two variables of the environment are read then: ``NONET_LIBRARY`` names a file to load in place
of the installed one, ``NONET_ISA`` an instruction set to use in place of the widest that the machine has.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import struct
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nonet
from nonet.extras import pip_install

if TYPE_CHECKING:
    from torch import Tensor

ABI = 2  # NONET_ABI of csrc/common/nonet.h, which everything below mirrors
ISAS = ("portable", "avx2", "avx512")
KERNELS = (
    "selective_scan",
    "selective_scan_backward",
    "causal_conv1d",
    "causal_conv1d_backward",
    "hgrn_scan",
    "hgrn_scan_backward",
    "mamba_step",
    "linear_rows",
)
_NAME = {"darwin": "libnonet.dylib", "win32": "libnonet.dll"}.get(sys.platform, "libnonet.so")
_CODES = {
    1: "the struct is of another version",
    2: "an argument is wrong",
    3: "memory ran out",
    4: "torch ran no task",
}
_AFRESH = ("--force-reinstall", "--no-deps", "--no-cache-dir")


class NativeError(OSError):
    """The library cannot be used, or one of its functions refused a call; the message says why."""


class Layout:
    """The bytes of a struct of the library, which begins with its own size.

    Args:
        fields: the names in order. ``name`` is an int64, ``name~`` a double, ``name*`` the address of a
            tensor's numbers, and ``name[]`` a view: the address and the strides of up to three axes.
    """

    def __init__(self, fields: str) -> None:
        self.fields = tuple(("size " + fields).split())
        self.offsets: dict[str, int] = {}
        self._places: dict[str, tuple[int, int | None]] = {}  # word; first stride, or 0, None for a number
        letters = ""
        for field in self.fields:
            name, at = field.rstrip("~*[]"), len(letters)
            self.offsets[name] = 8 * at
            self._places[name] = at, {"[]": at + 1, "*": 0}.get(field[len(name) :])
            letters += {"[]": "qqqq", "~": "d"}.get(field[len(name) :], "q")
        self._struct = struct.Struct(letters)
        self.size = self._struct.size
        self._empty: list[float] = [self.size, *[0] * (len(letters) - 1)]

    def pack(self, **values: Any) -> bytes:
        """Returns the struct with the given fields, the others zero; tensors have to outlive its use."""
        words, places = self._empty.copy(), self._places
        for name, value in values.items():
            if value is None:
                continue
            at, first = places[name]
            if first is None:
                words[at] = value
            else:
                words[at] = value.data_ptr()
                if first:
                    strides = value.stride()
                    words[first : first + len(strides)] = strides
        return self._struct.pack(*words)


SCAN = Layout(
    "dtype rows channels states length parts softplus train starts*"
    " u[] delta[] z[] out[] b[] c[] a[] d[] delta_bias[] initial[] last[] fronts*"
    " dout[] du[] ddelta[] dz[] dlast[] dinitial[] db* dc* da* dd* dbias*"
)
CONV = Layout(
    "dtype rows channels width length silu parts starts*"
    " x[] out[] weight[] bias[] initial[] last[] dout[] dx[] dlast[] dinitial[] dweight* dbias*"
)
HGRN = Layout(
    "dtype rows channels length logits parts starts*"
    " i[] f[] h[] lower_bound[] initial[] last[] dh[] di[] df[] dlast[] dinitial[] dlower_bound*"
)
STEP = Layout(
    "dtype wide rows width channels states rank taps memory norm_eps~"
    " x[] out[] conv[] new_conv[] ssm[] new_ssm[]"
    " in_proj[] in_bias[] conv_weight[] conv_bias[] x_proj[] dt_proj[] dt_bias[] a_log[] d[]"
    " out_proj[] out_bias[] work*"
)
LINEAR = Layout("dtype weight_dtype inputs outputs stride weight* rows x* out* bias*")
LAYOUTS = {"NonetScan": SCAN, "NonetConv": CONV, "NonetHgrn": HGRN, "NonetStep": STEP, "NonetLinear": LINEAR}


class Library:
    """A loaded library.

    Attributes:
        path: its file.
        pooled: it runs on torch's threads; if not, on the calling thread alone.

    Raises:
        NativeError: the file cannot be loaded, is of another version of nonet, or NONET_ISA names an
            instruction set that is not to be had.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        remedy = (
            "NONET_LIBRARY names it"
            if os.environ.get("NONET_LIBRARY")
            else f"run {pip_install('', *_AFRESH)}"
        )
        try:
            _check_whole(path)
            self._c = ctypes.CDLL(str(path))
            found = self._c.nonet_abi()
            if found != ABI:
                raise NativeError(
                    f"{path} has version {found} of the C interface, this nonet needs {ABI}; {remedy}"
                )
            self._kernels = {name: self._function(name, ctypes.c_int, ctypes.c_char_p) for name in KERNELS}
            self._isas = self._function("isas", ctypes.c_int64)
            self._isa = self._function("isa", ctypes.c_int64)
            self._set_isa = self._function("set_isa", ctypes.c_int, ctypes.c_int64)
            self._multiply_add = self._function("spin_multiply_add", ctypes.c_double, ctypes.c_int64)
            self._exponential = self._function("spin_exponential", ctypes.c_double, ctypes.c_int64)
            self._expect = self._function("expect", None, ctypes.c_void_p, ctypes.c_int64)
            set_pool = self._function("set_pool", None, ctypes.c_void_p)
        except (OSError, AttributeError) as error:
            raise NativeError(f"the C library of nonet cannot be loaded: {error}; {remedy}") from error
        asked = os.environ.get("NONET_ISA")
        if asked:
            self.use_isa(asked)
        pool = _torch_pool()
        self.pooled = pool is not None
        set_pool(pool)

    def _function(self, name: str, result: type | None, *arguments: type) -> Callable[..., int]:
        function = getattr(self._c, f"nonet_{name}")
        function.restype, function.argtypes = result, arguments
        return function

    def call(self, name: str, args: bytes) -> None:
        """Runs the kernel ``name`` of ``KERNELS`` on a packed struct; raises NativeError if it refuses."""
        code = self._kernels[name](args)
        if code:
            raise NativeError(f"{name} of {self.path} refused: {_CODES.get(code, f'code {code}')}")

    def expect(self, tensor: Tensor) -> None:
        """Asks for large pages under a large fresh tensor, to fill which costs several times less then."""
        if tensor.nbytes >= 2**22:
            self._expect(tensor.data_ptr(), tensor.nbytes)

    def isas(self) -> tuple[str, ...]:
        """Returns the instruction sets that can be used here, the widest last."""
        bits = self._isas()
        return tuple(name for k, name in enumerate(ISAS) if bits >> k & 1)

    @property
    def isa(self) -> str:
        """The instruction set in use."""
        return ISAS[self._isa()]

    def use_isa(self, name: str) -> None:
        """Uses another instruction set from now on; raises NativeError if it is not to be had."""
        if name not in self.isas():
            raise NativeError(
                f"instruction set {name!r} is not to be had here; choose from {', '.join(self.isas())}"
            )
        self._set_isa(ISAS.index(name))

    def fma_rate(self, threads: int) -> float:
        """Returns what the multiply-add units of so many threads reach, in operations a second."""
        return _rate(self._multiply_add, threads)

    def exp_rate(self, threads: int) -> float:
        """Returns how many exponentials of the kernels so many threads reach in a second."""
        return _rate(self._exponential, threads)


@functools.cache
def library() -> Library:
    """Returns the library, loading it on the first call; raises NativeError if it cannot be used."""
    path = _file()
    if path is None:
        raise NativeError(_absent())
    return Library(path)


@functools.cache
def absence() -> str | None:
    """Returns why there is no library, or None if there is one.

    Raises:
        NativeError: there is one and it cannot be used, which is a broken installation and no pure one.
    """
    if _file() is None:
        return _absent()
    library()
    return None


def storage(tensor: Tensor) -> int:
    """Returns how the library calls the dtype of a tensor, float32 or bfloat16."""
    return int(tensor.element_size() == 2)


def parts(rows: int, channels: int) -> int:
    """Returns into how many tasks the channels of a row are cut, so that all threads get as much to do."""
    import torch

    threads = torch.get_num_threads()
    return 1 if rows >= 4 * threads else min(threads // math.gcd(rows, threads), -(-channels // 16))


def _absent() -> str:
    return (
        "the C library was not built when nonet was installed, which takes GCC or Clang; "
        f"to get it, install one of them and run {pip_install('', *_AFRESH)}"
    )


def _file() -> Path | None:
    named = os.environ.get("NONET_LIBRARY")
    if named:
        return Path(named).absolute()
    return next((path for folder in _folders() if (path := folder / _NAME).is_file()), None)


def _folders() -> list[Path]:
    """Returns where the package lies: installed for editing, what was built lies apart from the sources."""
    folders = [Path(folder) for folder in nonet.__path__]  # which not every importer knows in full
    with contextlib.suppress(metadata.PackageNotFoundError):
        folders.append(Path(str(metadata.distribution("nonet").locate_file("nonet"))))
    return folders


def _check_whole(path: Path) -> None:
    """Raises OSError for an ELF file that ends early, since loading it would end the process."""
    with path.open("rb") as file:
        head = file.read(64)
    if len(head) == 64 and head[:5] == b"\x7fELF\x02":
        table, size, number = struct.unpack_from("=q10xHH", head, 40)  # the sections, which come last
        if path.stat().st_size < table + size * number:
            raise OSError(f"{path} ends early")


def _torch_pool() -> int | None:
    """Returns the address of torch's parallel loop, a plain C function, or None where it has none."""
    import torch._C

    try:
        # The symbol lies in a library that this file needs; a search includes those.
        function = ctypes.CDLL(torch._C.__file__).torch_parallel_for
    except (OSError, AttributeError):
        return None
    return ctypes.cast(function, ctypes.c_void_p).value


def _rate(spin: Callable[[int], float], threads: int) -> float:
    """Returns what ``spin`` does a second on so many threads at once, the best of several times."""
    rounds, seconds = 1024, 0.0
    while seconds < 0.02:
        rounds *= 2
        begin = time.perf_counter()
        spin(rounds)
        seconds = time.perf_counter() - begin
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            begin = time.perf_counter()
            done = sum(pool.map(spin, [rounds] * threads))
            best = max(best, done / (time.perf_counter() - begin))
    return best
