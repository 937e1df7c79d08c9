"""What this machine can do at most, measured: bytes copied, multiply-adds and exponentials a second."""

from __future__ import annotations

import functools
from pathlib import Path

import psutil
import torch

from nonet import native
from nonet.bench.timing import Effort, Timed, in_turns, spread

_LEAST = 2**28  # bytes in a buffer, where the caches' size is unknown or small


@functools.cache
def limits(threads: int, quick: bool = False) -> dict[str, float | None]:
    """Returns the limits with so many threads, in units a second; None for what cannot be measured.

    ``bytes`` counts those read and those written by ``Tensor.copy_`` between two buffers that are each
    several times the last cache (``buffer`` bytes). ``operations`` (a multiply-add is two) and
    ``exponentials`` are loops of the C library that touch no memory, on the instruction set in use.
    """
    size = 2**22 if quick else _buffer()
    a, b = torch.ones(2, size // 4)  # written, as memory never touched reads from one page of zeros
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        [seconds] = in_turns([Timed(lambda: b.copy_(a))], Effort(rounds=2 if quick else 9, seconds=0.0))
    finally:
        torch.set_num_threads(before)
    library = None if native.absence() else native.library()
    return {
        "bytes": 2 * size / spread(seconds)["median"],
        "operations": None if library is None else library.fma_rate(threads),
        "exponentials": None if library is None else library.exp_rate(threads),
        "buffer": size,
    }


def _buffer() -> int:
    """Returns four times the largest cache, within an eighth of the memory that is free, in whole numbers."""
    wanted = max(_LEAST, 4 * _largest_cache())
    return min(wanted, psutil.virtual_memory().available // 8) // 4096 * 4096


def _largest_cache() -> int:
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text(encoding="utf-8").strip()
        sizes.append(int(text.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1], 1))
    return max(sizes, default=0)
