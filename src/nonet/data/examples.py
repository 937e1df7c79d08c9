"""Labelled and prompted examples out of tables, every row of them checked."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nonet.data.chat import Message
from nonet.data.split import SPLITS
from nonet.data.tables import SUFFIXES, is_table, read_rows
from nonet.data.text import check_text
from nonet.hub import expanded
from nonet.shapes import check_positive, freeze_lists

COLUMNS = (("messages",), ("prompt", "completion"), ("text", "label"), ("text",))
_log = logging.getLogger(__name__)
_PART = 10  # one example in ten validates, one tests, the rest trains


@dataclass(frozen=True)
class Example:
    """One row of a table: a text; a text with its label; a prompt (``text``) with its completion; or a chat.

    The messages of a chat are pairs of a role and what is said; its ``text`` is that of the first.
    """

    text: str
    label: str | None = None
    completion: str | None = None
    messages: tuple[Message, ...] | None = None

    def __post_init__(self) -> None:
        freeze_lists(self)


@dataclass(frozen=True)
class Examples:
    """The examples of a file, in parts.

    Attributes:
        name: for people.
        columns: what each row has: one of :data:`COLUMNS`.
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


def read_examples(
    path: str | Path,
    seed: int = 0,
    few: int | None = None,
    kinds: Sequence[tuple[str, ...]] = COLUMNS,
) -> Examples:
    """Returns the examples of a table, dealt 80/10/10 into train, validation and test.

    A ``.jsonl`` (or ``.ndjson``) file holds an object a line, a ``.json`` file a list of objects, and a
    ``.csv`` or ``.tsv`` file a header and a record a line. The columns are ``text``, ``text`` and ``label``,
    ``prompt`` and ``completion``, or in JSON ``messages``, a list of objects with ``role`` and ``content``;
    they are the same in every row. Others are left out, and named in the log.

    Args:
        path: of the file.
        seed: of the order in which rows are dealt.
        few: train on so many examples only, as evenly over the labels as possible; the rest tests too.
        kinds: sets of columns to take, the preferred first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is wrong (its place is named), or there are fewer than ten of them.
    """
    path = expanded(path)
    check_positive(few=few)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file at {path}; name one that ends in {', '.join(SUFFIXES)}")
    if not is_table(path):
        raise ValueError(f"path={str(path)!r} must end in {', '.join(SUFFIXES)}")
    columns: tuple[str, ...] | None = None
    left_out: dict[str, None] = {}
    found: list[Example] = []
    for place, row in read_rows(path):
        columns = columns or _columns(row, kinds, f"{path}, {place}")
        found.append(_example(row, columns, f"{path}, {place}"))
        left_out |= dict.fromkeys(name for name in row if name not in columns)
    if columns is None or len(found) < _PART:
        raise ValueError(f"{path} has {len(found)} examples; at least {_PART} are needed")
    if left_out:
        _log.info(
            "%s: learned are %s; left out are %s", path.name, " and ".join(columns), ", ".join(left_out)
        )
    return deal(path.name, columns, found, seed, few)


def read_texts(path: str | Path) -> list[str]:
    """Returns the texts of a file in their order: its lines, or the column ``text`` of a table.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no UTF-8 text, or a row has no text.
    """
    path = expanded(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file at {path}")
    if is_table(path):
        kinds = (("text",),)
        rows = ((f"{path}, {place}", row) for place, row in read_rows(path))
        return [_example(row, _columns(row, kinds, where), where).text for where, row in rows]
    check_text(path)
    return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")


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


def _columns(row: dict[str, Any], kinds: Sequence[tuple[str, ...]], where: str) -> tuple[str, ...]:
    for names in kinds:
        if all(name in row for name in names):
            return names
    allowed = ", or ".join(" and ".join(names) for names in kinds)
    raise ValueError(
        f"{where}: must have {allowed}; it has {', '.join(map(str, row)) or 'nothing'}; rename the columns, "
        "or end the file's name in .txt to learn it as it stands"
    )


def _example(row: dict[str, Any], columns: tuple[str, ...], where: str) -> Example:
    if columns == ("messages",):
        messages = _messages(row.get("messages"), where)
        return Example(messages[0][1], messages=messages)
    for name in columns:
        value = row.get(name)
        fine = isinstance(value, str) or (name == "label" and isinstance(value, int | bool))
        if not fine or not str(value).strip():
            given = "nothing" if value in (None, "") else repr(value)[:40]
            raise ValueError(f"{where}: {name} must be text that is not empty; got {given}")
        _check_whole(str(value), f"{where}: {name}")
    values = {name: str(row[name]) for name in columns}
    return Example(values[columns[0]], values.get("label"), values.get("completion"))


def _messages(value: Any, where: str) -> tuple[Message, ...]:
    """Returns the turns of a conversation, each with its role and what is said."""
    found: list[Message] = []
    for turn in value if isinstance(value, list) else ():
        said = {name: turn.get(name) for name in ("role", "content")} if isinstance(turn, dict) else {}
        if not said or not all(isinstance(text, str) for text in said.values()):
            raise ValueError(
                f"{where}: message {len(found) + 1} must be an object with role and content, both text; "
                f"got {repr(turn)[:60]}"
            )
        _check_whole(str(said["content"]), f"{where}: message {len(found) + 1}")
        found.append((str(said["role"]), str(said["content"])))
    roles = [role for role, _ in found]
    if "assistant" not in roles or roles[0] == "assistant":
        raise ValueError(
            f"{where}: messages must be a list with a message of the user before one of the assistant; "
            f"got {', '.join(roles) or repr(value)[:60]}"
        )
    return tuple(found)


def _check_whole(text: str, what: str) -> None:
    """Raises ValueError for text with half of a character, which no file of UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{what} holds {text[error.start]!a}, half of a character; write both halves of the pair, or none"
        ) from None


def _few(examples: list[Example], few: int) -> tuple[list[Example], list[Example]]:
    """Takes the first of each label in turn; returns those taken and the rest."""
    by_label: dict[str | None, list[Example]] = {}
    for example in examples:
        by_label.setdefault(example.label, []).append(example)
    rounds = max(len(mine) for mine in by_label.values())
    turns = [mine[i] for i in range(rounds) for _, mine in sorted(by_label.items(), key=str) if i < len(mine)]
    return turns[:few], turns[few:]
