"""The folder of a comparison: a plan, and one line of JSON for every cell that has run.

A row is written whole or not at all, so that a run which is killed loses the cell it was at and no other.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nonet.writing import cannot_write

FORMAT = 1
PLAN = "plan.json"
ROWS = "rows.jsonl"
REPORT = "report.html"

Record = dict[str, Any]  # a plan or a row, as it is in its file


def as_json(value: Any, **options: Any) -> str:
    """Returns JSON that every parser accepts: a number that is not finite is written as null."""
    return json.dumps(_finite(value), allow_nan=False, **options)


def append_row(path: Path, row: Record) -> None:
    """Adds a row after the others and waits until the disk has it.

    A half line of a killed process, or of a full disk, is cut off. A number that is not finite is written as
    null. One process writes at a time.

    Raises:
        OSError: the file cannot be written; the message names the folder.
    """
    line = as_json(row, ensure_ascii=False) + "\n"
    try:
        _cut_half_line(path)
        with path.open("ab", buffering=0) as file:
            _write_all(file.fileno(), line.encode())
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            _cut_half_line(path)
        raise cannot_write(f"{path.name} in {path.parent}", error) from error


def read_rows(path: Path) -> list[Record]:
    """Returns the rows in the order of writing, none when there is no file.

    A last line without its newline was cut short by a killed process and is left out.

    Raises:
        ValueError: another line is not a row of this format; the message says where, and what to do.
    """
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")
    lines = whole.split(b"\n") if whole else []
    remedy = "delete the line, or start anew with another --out"
    return [_parse(line, f"{path}, line {number},", remedy) for number, line in enumerate(lines, 1)]


def read_plan(directory: Path) -> Record:
    """Returns the plan of the comparison in ``directory``.

    Raises:
        FileNotFoundError: there is no plan in it.
        ValueError: the plan is not of this format.
    """
    path = directory / PLAN
    if not path.exists():
        raise FileNotFoundError(
            f"{directory} holds no {PLAN}; name the folder that nonet compare wrote with --out"
        )
    return _parse(path.read_bytes(), str(path), "start anew with another --out")


def finished(rows: Iterable[Record]) -> dict[str, Record]:
    """Returns cell id -> its last row that is done."""
    return {row["cell"]["id"]: row for row in rows if row["state"] == "done"}


def _parse(line: bytes, where: str, remedy: str) -> dict[str, Any]:
    try:
        # A number that is not finite is no number: it reads as missing.
        value = json.loads(line, parse_constant=lambda _: None)
    except ValueError as error:  # UnicodeDecodeError is one too
        raise ValueError(f"{where} is not valid JSON ({error}); {remedy}") from error
    found = value.get("format") if isinstance(value, dict) else None
    if found != FORMAT:
        raise ValueError(f"{where} is of format {found!r}, and this nonet reads format {FORMAT}; {remedy}")
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _cut_half_line(path: Path) -> None:
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        os.truncate(path, data.rfind(b"\n") + 1)


def _write_all(descriptor: int, data: bytes) -> None:
    """One write as a rule; the system may take less at a time, and then the rest follows."""
    while data:
        data = data[os.write(descriptor, data) :]
