"""Where rows are kept: a file a kernel, to which rows are only ever added."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nonet.bench.workloads import KERNELS
from nonet.compare.store import Record, append_row, read_rows
from nonet.data.tokens import cache_folder


def folder(given: Path | None = None) -> Path:
    """Returns where rows go: ``given``, else ``benchmarks/results`` of a checkout, else the user's cache."""
    if given is not None:
        return given
    checkout = Path("benchmarks", "results")
    return checkout if checkout.is_dir() else cache_folder() / "benchmarks"


def append(directory: Path, row: Record) -> None:
    """Adds a row, whole or not at all; raises OSError when it cannot be written."""
    directory.mkdir(parents=True, exist_ok=True)
    append_row(directory / f"{row['kernel']}.jsonl", row)


def load(directory: Path) -> list[Record]:
    """Returns all rows, kernel by kernel in the order of writing; raises ValueError for a broken one."""
    return [row for kernel in KERNELS for row in read_rows(directory / f"{kernel}.jsonl")]


def newest(rows: Iterable[Record]) -> list[list[Record]]:
    """Returns the last row of each workload, number of threads and way to allocate, machine by machine.

    Rows of ``--quick`` measure nothing and are left out.
    """
    real = (row for row in rows if not row["quick"])
    last = {(row["name"], row["threads"], row["memory_kept"]): row for row in real}
    machines: dict[tuple[str, int], list[Record]] = {}
    for row in last.values():
        machines.setdefault((row["provenance"]["cpu"], row["provenance"]["cores"]), []).append(row)
    return list(machines.values())
