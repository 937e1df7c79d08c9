"""Rows out of files that hold a table: JSON lines, a JSON list, or values separated by commas or tabs."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from nonet.data.text import check_text

Rows = Iterator[tuple[str, dict[str, Any]]]  # where a row stands, and what it holds by column


def is_table(path: str | Path) -> bool:
    """Returns whether a file's name ends as that of a table, in capitals or not."""
    return Path(path).suffix.lower() in _READERS


def read_rows(path: Path) -> Rows:
    """Yields the place and the columns of every row of a table.

    Raises:
        ValueError: the file is no UTF-8 text, or a row is malformed; the message names file and row.
    """
    check_text(path)
    yield from _READERS[path.suffix.lower()](path)


def _json_lines(path: Path) -> Rows:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield (
                    f"line {number}",
                    _object(_parse(line, f"{path}, line {number}"), f"{path}, line {number}"),
                )


def _json_list(path: Path) -> Rows:
    items = _parse(path.read_text(encoding="utf-8-sig"), str(path))
    if not isinstance(items, list):
        found = (
            f"an object with {', '.join(items) or 'nothing'}" if isinstance(items, dict) else repr(items)[:40]
        )
        raise ValueError(
            f"{path} must hold a list of JSON objects, or one object a line and end in .jsonl; got {found}"
        )
    for number, item in enumerate(items, 1):
        yield f"item {number}", _object(item, f"{path}, item {number}")


def _separated(path: Path, delimiter: str) -> Rows:
    # A field may be as long as the file; the reader's own limit cuts texts of 128 KiB.
    csv.field_size_limit(max(csv.field_size_limit(), path.stat().st_size))
    with path.open(newline="", encoding="utf-8-sig") as file:
        header = next(csv.reader([file.readline()], delimiter=delimiter), [])
        file.seek(0)
        # Whoever writes a space behind the commas of the header writes it everywhere.
        spaced = any(name != name.strip() for name in header)
        reader = csv.DictReader(file, delimiter=delimiter, skipinitialspace=spaced, strict=True)
        try:
            names = [name.strip() for name in reader.fieldnames or ()]
            if len(set(names)) < len(names):
                raise ValueError(f"{path}, line 1: a column is there twice; it has {', '.join(names)}")
            reader.fieldnames = names
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(
                        f"{path}, line {reader.line_num}: it has another number of fields than the header"
                    )
                yield f"line {reader.line_num}", row
        except csv.Error as error:
            raise ValueError(f"{path}, line {reader.line_num + 1}: {error}") from None


_READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_list,
    ".csv": functools.partial(_separated, delimiter=","),
    ".tsv": functools.partial(_separated, delimiter="\t"),
}
SUFFIXES = tuple(_READERS)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: no JSON ({error.msg} at character {error.pos + 1})") from None
    except RecursionError:
        raise ValueError(f"{where}: its JSON is nested too deeply") from None


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: must be a JSON object; got {type(row).__name__}")
    return row
