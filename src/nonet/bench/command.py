"""What ``nonet bench`` does: measure workload by workload, keep each row at once, show them."""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from nonet.bench import results
from nonet.bench.run import measure
from nonet.bench.table import terminal
from nonet.bench.workloads import workloads
from nonet.compare.store import Record
from nonet.screen import console
from nonet.writing import check_writable

DONE, FAILED, STOPPED = 0, 1, 3


def execute(
    kernels: Sequence[str],
    out: Path | None,
    *,
    threads: Sequence[int],
    peers: bool,
    quick: bool,
    keep_memory: bool,
    as_json: bool,
) -> int:
    """Measures and returns the exit code: 0 done, 1 a row failed, 3 stopped early with the rows done kept.

    Raises:
        ValueError: a kernel is not known, or the allocator cannot be told to keep memory.
        OSError: a row cannot be written.
    """
    directory = results.folder(out)
    check_writable(directory)  # not after the first measurement
    if keep_memory:
        _keep_memory()
    asked = threads or sorted({torch.get_num_threads(), 1}, reverse=True)
    plan = [(workload, number) for workload in workloads(kernels, quick) for number in asked]
    rows: list[Record] = []
    code = DONE
    try:
        for place, (workload, number) in enumerate(plan, 1):
            _say(f"[{place}/{len(plan)}] {workload.name}, {number} thread{'s' * (number > 1)}")
            row = measure(workload, number, peers=peers, quick=quick, memory_kept=keep_memory)
            results.append(directory, row)
            rows.append(row)
            if row["state"] == "failed":
                code = FAILED
                _say(f"  failed: {row['reason']}")
    except KeyboardInterrupt:
        code = STOPPED
        _say(f"stopped; the {len(rows)} rows done so far are kept")
    if as_json:
        sys.stdout.write(json.dumps({"rows": rows, "out": str(directory)}, indent=2, allow_nan=False) + "\n")
    elif rows:
        console().print(terminal(rows))
    _say(f"{len(rows)} rows added to {directory}")
    return code


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _keep_memory() -> None:
    """Lets the process keep memory that was freed, where glibc allocates.

    By itself it gives large blocks back to the system after every call, and then a call takes as long as
    clearing fresh pages does, for ours and for others.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError) as error:
        raise ValueError("--keep-memory needs glibc's allocator, which this system does not have") from error
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)
