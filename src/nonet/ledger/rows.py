"""The rows of the ledger: one line of JSON a claim that was tested, to which lines are only ever added."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nonet.bench.results import folder
from nonet.compare.store import Record, read_rows

NAME = "claims.jsonl"


def read_ledger(directory: Path | None = None) -> list[Record]:
    """Returns all rows, oldest first, none where nothing was tested yet.

    Args:
        directory: that holds the ledger; by default that of the checkout, else of the user.

    Raises:
        ValueError: a row is broken.
    """
    return read_rows(folder(directory) / NAME)


def newest(rows: Iterable[Record]) -> list[Record]:
    """Returns the row of each claim that counts: of the full size before the quick, then the last."""
    best: dict[tuple[str, str], Record] = {}
    for row in rows:
        key = row["method"], row["claim"]
        if key not in best or row["full"] >= best[key]["full"]:
            best[key] = row
    return list(best.values())
