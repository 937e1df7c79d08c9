"""Runs the cells of a plan, each in a process of its own, and keeps what each brings back."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import nonet
from nonet.compare.cell import failed_row
from nonet.compare.plan import Cell, Plan
from nonet.compare.store import (
    PLAN,
    REPORT,
    ROWS,
    append_row,
    as_json,
    finished,
    read_plan,
    read_rows,
)
from nonet.writing import check_writable, write_whole

Progress = Callable[[Cell, float, str], None]


def begin(plan: Plan, directory: Path) -> None:
    """Writes the plan into a new folder; raises as :func:`check_new` does."""
    check_new(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / PLAN, as_json(plan.to_json(), indent=1) + "\n")


def check_new(directory: Path) -> None:
    """Raises ValueError when the folder holds a comparison, OSError when none can be written there."""
    check_writable(directory)
    for name in (PLAN, ROWS, REPORT):
        if (directory / name).exists():
            raise ValueError(
                f"--out {directory} holds {name} of another comparison; continue that one with --resume, "
                "or name another --out"
            )


def opened(directory: Path) -> Plan:
    """Returns the plan of a folder; raises FileNotFoundError or ValueError when there is none to read."""
    value = read_plan(directory)
    try:
        return Plan.from_json(value)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        about = value.get("environment")
        version = about.get("nonet") if isinstance(about, dict) else None
        raise ValueError(
            f"{directory / PLAN} is no plan that nonet {nonet.__version__} can continue "
            f"({type(error).__name__}: {error}; written by nonet {version or 'of unknown version'}); "
            "start another comparison with a new --out"
        ) from error


def pending(plan: Plan, directory: Path) -> list[Cell]:
    """Returns the cells that have no finished row yet, in the plan's order."""
    done = finished(read_rows(directory / ROWS))
    return [cell for cell in plan.cells if cell.id not in done]


def run(plan: Plan, directory: Path, progress: Progress) -> int:
    """Runs what is pending and appends a row for each; returns the number that failed.

    An interrupt ends the cell that is running and is raised again; its row is not written.
    """
    failures = 0
    for cell in pending(plan, directory):
        row = run_in_process(cell, lambda share, doing, cell=cell: progress(cell, share, doing))  # type: ignore[misc]
        append_row(directory / ROWS, row)
        failures += row["state"] != "done"
        progress(cell, 1.0, row["state"])
    return failures


def run_in_process(cell: Cell, progress: Callable[[float, str], None]) -> dict[str, Any]:
    """Runs one cell in a process of its own and returns its row, a failed one if the process dies."""
    value = cell.to_json()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as log, _process(log) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # if it died at once, its code says why
            process.stdin.write(json.dumps(value) + "\n")
            process.stdin.flush()
        row: dict[str, Any] | None = None
        for line in process.stdout:
            message = json.loads(line)
            if "row" in message:
                row = message["row"]
                break
            progress(min(message["share"], 0.99), message["doing"])  # 1 means that its row is here
        if row is None:
            code = process.wait()
            log.seek(0)
            row = failed_row(value, _why(code, log.read()))
    return row


@contextmanager
def _process(log: Any) -> Iterator[subprocess.Popen[str]]:
    """A worker that does not outlive the block, whatever ends it."""
    process = subprocess.Popen(
        # -P: with -m alone, a json.py in the current directory would be imported for the library's.
        [sys.executable, "-P", "-m", "nonet.compare.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        encoding="utf-8",
        start_new_session=True,  # Ctrl-C reaches the comparison, which then ends the worker
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def _why(code: int, log: str) -> str:
    last = next((line for line in reversed(log.splitlines()) if line.strip()), "it said nothing")
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; the machine may have run out of memory" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"
    return f"the process ended with code {code}: {last}"
