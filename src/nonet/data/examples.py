"""Labelled and prompted examples out of JSONL and CSV files, every line of them checked."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nonet.data.split import SPLITS
from nonet.shapes import check_positive, freeze_lists

SUFFIXES = (".jsonl", ".csv")
COLUMNS = (("prompt", "completion"), ("text", "label"), ("text",))
_PART = 10  # one example in ten validates, one tests, the rest trains


@dataclass(frozen=True)
class Example:
    """One line of a file: a text; a text with its label; or a prompt (``text``) with its completion."""

    text: str
    label: str | None = None
    completion: str | None = None


@dataclass(frozen=True)
class Examples:
    """The examples of a file, in parts.

    Attributes:
        name: for people.
        columns: what each line has: ``(text,)``, ``(text, label)`` or ``(prompt, completion)``.
        train: to learn from.
        validation: to choose by.
        test: to judge by.
    """

    name: str
    columns: tuple[str, ...]
    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]

    def __post_init__(self) -> None:
        freeze_lists(self)

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label there is, sorted."""
        return tuple(sorted({e.label for s in SPLITS for e in getattr(self, s) if e.label is not None}))


def read_examples(path: str | Path, seed: int = 0, few: int | None = None) -> Examples:
    """Returns the examples of a JSONL or CSV file, dealt 80/10/10 into train, validation and test.

    A JSONL file holds an object a line, a CSV file a header and a record a line, with ``text``, with ``text``
    and ``label``, or with ``prompt`` and ``completion``; all lines alike. Other columns are left out.

    Args:
        path: of the file; its name ends in ``.jsonl`` or ``.csv``.
        seed: of the order in which lines are dealt.
        few: train on so many examples only, as evenly over the labels as it goes; the rest tests too.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is wrong (its number is named), or there are fewer than ten of them.
    """
    path = Path(path).expanduser()
    check_positive(few=few)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file at {path}; name a .jsonl or .csv file")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"path={str(path)!r} must end in {' or '.join(SUFFIXES)}")
    columns: tuple[str, ...] | None = None
    found: list[Example] = []
    for number, row in _rows(path):
        columns = columns or _columns(row, path, number)
        found.append(_example(row, columns, path, number))
    if columns is None or len(found) < _PART:
        raise ValueError(f"{path} has {len(found)} examples; at least {_PART} are needed")
    return deal(path.name, columns, found, seed, few)


def deal(
    name: str, columns: tuple[str, ...], examples: list[Example], seed: int, few: int | None
) -> Examples:
    """Deals examples out at random: a tenth to judge by, a tenth to choose by, the rest to learn from."""
    order = np.random.default_rng(seed).permutation(len(examples))
    part = len(examples) // _PART
    dealt = [examples[i] for i in order]
    train, test = dealt[2 * part :], dealt[:part]
    if few is not None:
        train, rest = _few(train, few)
        test += rest
    return Examples(name, columns, tuple(train), tuple(dealt[part : 2 * part]), tuple(test))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Returns the number of each line and what it holds."""
    try:
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    if None in row or None in row.values():
                        raise ValueError(
                            f"{path}, line {reader.line_num}: it has another number of fields than the header"
                        )
                    yield reader.line_num, row
            return
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(line, path, number)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text (byte {error.start} of a block read)") from None
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num + 1}: {error}") from None


def _object(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}, line {number}: no JSON ({error.msg} at character {error.pos + 1})"
        ) from None
    if not isinstance(row, dict):
        raise ValueError(f"{path}, line {number}: must be a JSON object; got {type(row).__name__}")
    return row


def _columns(row: dict[str, Any], path: Path, number: int) -> tuple[str, ...]:
    for names in COLUMNS:
        if all(name in row for name in names):
            return names
    allowed = ", or ".join(" and ".join(names) for names in COLUMNS)
    raise ValueError(
        f"{path}, line {number}: must have {allowed}; it has {', '.join(map(str, row)) or 'nothing'}"
    )


def _example(row: dict[str, Any], columns: tuple[str, ...], path: Path, number: int) -> Example:
    for name in columns:
        value = row.get(name)
        fine = isinstance(value, str) or (name == "label" and isinstance(value, int | bool))
        if not fine or not str(value).strip():
            given = "nothing" if value in (None, "") else repr(value)[:40]
            raise ValueError(f"{path}, line {number}: {name} must be text that is not empty; got {given}")
    first, *others = (str(row[name]) for name in columns)
    return Example(first, **dict(zip(columns[1:], others, strict=True)))


def _few(examples: list[Example], few: int) -> tuple[list[Example], list[Example]]:
    """Takes the first of each label in turn; returns those taken and the rest."""
    by_label: dict[str | None, list[Example]] = {}
    for example in examples:
        by_label.setdefault(example.label, []).append(example)
    rounds = max(len(mine) for mine in by_label.values())
    turns = [mine[i] for i in range(rounds) for _, mine in sorted(by_label.items(), key=str) if i < len(mine)]
    return turns[:few], turns[few:]
