"""What is measured: a list of names, sizes and ways to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

Sizes = Mapping[str, int]
What = Literal["forward", "training forward", "forward+backward", "training step", "prefill", "decode"]

KERNELS = ("selective_scan", "causal_conv1d", "hgrn_scan", "mamba", "lora", "linear_rows")

_LENGTHS = tuple(2**k for k in range(9, 17))  # 512 ... 65536


@dataclass(frozen=True)
class Workload:
    """One thing to measure.

    Attributes:
        kernel: an operation, or ``mamba`` or ``lora`` for whole Transformers models; names the file of its
            rows.
        name: starts with the kernel.
        what: the way to call. A ``training forward`` keeps what the backward pass needs, and is where
            training memory is taken.
        sizes: letters of the shape.
        checked: sizes that replace some of these where the oracle in float64 would take too long.
        dtype: of the large tensors; rates, biases and states are float32 as in models.
        rows: dtype of the rows that ``linear_rows`` multiplies by its weight, its large tensor.
        channels_last: channels lie next to each other in memory, else times do.
        series: a point of a curve over lengths, where peers are left out.
    """

    kernel: str
    name: str
    what: What
    sizes: Sizes
    checked: Sizes = field(default_factory=dict)
    dtype: str = "float32"
    rows: str = "float32"
    channels_last: bool = True
    series: bool = False


def workloads(kernels: Sequence[str] = (), quick: bool = False) -> tuple[Workload, ...]:
    """Returns the workloads of some kernels, by default of all.

    Raises:
        ValueError: a kernel is not known.
    """
    for kernel in kernels:
        if kernel not in KERNELS:
            raise ValueError(f"kernel={kernel!r} is not known; choose from {', '.join(KERNELS)}")
    return tuple(w for w in (_QUICK if quick else _FULL) if not kernels or w.kernel in kernels)


def _on(kernel: str, what: What, label: str, sizes: Sizes, **options: Any) -> Workload:
    return Workload(kernel, f"{kernel} {what} {label}", what, sizes, **options)


_scan, _conv, _hgrn, _mamba, _lora, _rows = (partial(_on, kernel) for kernel in KERNELS)

_FLOATS = ("float32", "bfloat16")
_WIDE = {"B": 1, "C": 1536, "N": 16}  # the channels of Mamba-130m
_FEW = {"C": 192, "T": 256}  # the oracle's backward pass grows with the square of the length
_GATED = {"B": 4, "C": 1024}
_MODEL = {"B": 1, "E": 768, "N": 16, "V": 512}
_LITTLE = {"E": 64, "layers": 2, "T": 48}
_SMOLLM2 = {"B": 2, "T": 256, "E": 576, "V": 49_152, "R": 8, "layers": 30}
_LINEARS = ({"I": 576, "O": 1536}, {"I": 1536, "O": 576}, {"I": 576, "O": 49_152})  # SmolLM2's, its head last
_FEWER = {"O": 576}
_SMALLER = {"E": 64, "V": 64, "layers": 2, "T": 16}

_FULL = (
    _scan("forward", "T2048", {**_WIDE, "T": 2048}),
    _scan("forward", "T2048 channels first", {**_WIDE, "T": 2048}, channels_last=False),
    _scan("forward", "T2048 bfloat16", {**_WIDE, "T": 2048}, dtype="bfloat16"),
    _scan("forward", "T1", {**_WIDE, "T": 1}),
    _scan("forward", "C64 T16", {"B": 1, "C": 64, "N": 16, "T": 16}),
    _scan("forward+backward", "T512", {**_WIDE, "T": 512}, checked=_FEW),
    _scan("forward+backward", "C64 T16", {"B": 1, "C": 64, "N": 16, "T": 16}),
    _scan("training forward", "T2048", {**_WIDE, "T": 2048}, checked=_FEW),
    *(_scan("forward", f"C256 T{T}", {"B": 1, "C": 256, "N": 16, "T": T}, checked={"T": min(T, 4096)},
            series=True) for T in _LENGTHS),
    _conv("forward", "T2048", {"B": 1, "C": 1536, "W": 4, "T": 2048}),
    _conv("forward+backward", "T2048", {"B": 1, "C": 1536, "W": 4, "T": 2048}, checked=_FEW),
    _conv("forward", "C64 T16", {"B": 1, "C": 64, "W": 4, "T": 16}),
    _hgrn("forward", "T2048", {**_GATED, "T": 2048}),
    _hgrn("forward+backward", "T2048", {**_GATED, "T": 2048}, checked=_FEW),
    _hgrn("forward", "C64 T16", {"B": 1, "C": 64, "T": 16}),
    *(_hgrn("forward", f"C1024 T{T}", {"B": 1, "C": 1024, "T": T}, checked={"T": min(T, 4096)},
            series=True) for T in _LENGTHS),
    _mamba("training step", "T512", {**_MODEL, "layers": 2, "T": 512}, checked=_LITTLE),
    _mamba("prefill", "T1024", {**_MODEL, "layers": 24, "T": 1024}, checked=_LITTLE),
    _mamba("decode", "a token", {**_MODEL, "layers": 24, "T": 1}, checked=_LITTLE),
    *(_lora("training step", f"135M {dtype}", _SMOLLM2, checked=_SMALLER, dtype=dtype) for dtype in _FLOATS),
    *(_lora("training forward", f"a layer {dtype}", {**_SMOLLM2, "V": 64, "layers": 1}, checked=_SMALLER,
            dtype=dtype) for dtype in _FLOATS),
    *(_lora("forward", f"8 adapters T{T}", {**_SMOLLM2, "B": 8, "T": T, "adapters": 8}, checked=_SMALLER)
      for T in (1, 16, 64)),
    *(_rows("forward", f"{sizes['I']} to {sizes['O']} R{R} {dtype} weight", {"R": R, **sizes}, checked=_FEWER,
            dtype=dtype) for sizes in _LINEARS for dtype in _FLOATS for R in (1, 5, 8)),
    *(_rows("forward", f"{sizes['I']} to {sizes['O']} R5 all bfloat16", {"R": 5, **sizes}, checked=_FEWER,
            dtype="bfloat16", rows="bfloat16") for sizes in _LINEARS),
)  # fmt: skip

_TINY_LORA = {"B": 2, "T": 8, "E": 64, "V": 64, "R": 4, "layers": 1}
_TINY = {"B": 1, "C": 48, "N": 16, "T": 48}
_TINY_LINEAR = {"R": 3, "I": 80, "O": 40}
_TINY_MODEL = {"B": 1, "E": 32, "N": 4, "V": 64, "layers": 2}
_QUICK = (
    _scan("forward", "C48 T48", _TINY),
    _scan("forward", "C48 T48 bfloat16 channels first", _TINY, dtype="bfloat16", channels_last=False),
    _scan("forward+backward", "C48 T48", _TINY),
    _scan("training forward", "C48 T48", _TINY),
    *(_scan("forward", f"C32 T{T}", {**_TINY, "C": 32, "T": T}, series=True) for T in (24, 48)),
    _conv("forward", "C48 T48", {"B": 1, "C": 48, "W": 4, "T": 48}),
    _hgrn("forward", "C48 T48", {"B": 1, "C": 48, "T": 48}),
    _hgrn("forward+backward", "C48 T16", {"B": 1, "C": 48, "T": 16}),
    _mamba("training step", "T16", {**_TINY_MODEL, "T": 16}),
    _mamba("prefill", "T16", {**_TINY_MODEL, "T": 16}),
    _mamba("decode", "a token", {**_TINY_MODEL, "T": 1}),
    *(_lora("training step", f"tiny {dtype}", _TINY_LORA, dtype=dtype) for dtype in _FLOATS),
    _lora("training forward", "tiny", _TINY_LORA),
    _lora("forward", "2 adapters", {**_TINY_LORA, "adapters": 2}),
    *(_rows("forward", f"R3 {dtype} weight", _TINY_LINEAR, dtype=dtype) for dtype in _FLOATS),
    _rows("forward", "R3 all bfloat16", _TINY_LINEAR, dtype="bfloat16", rows="bfloat16"),
)
