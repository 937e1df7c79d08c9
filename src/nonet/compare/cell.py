"""Runs one cell: a plain function from a plain value to a row."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from nonet.compare.plan import Cell
from nonet.compare.store import FORMAT

Report = Callable[[float, str], None]  # (share done from 0 to 1, what is being done)

# Kind of a cell -> the module that trains and measures it (``run``), measures one step of its model
# (``probe``), and says from that how long it will take (``seconds``).
_HOMES = {
    "language": "nonet.compare.language",
    "recall": "nonet.compare.recall",
    "adapter": "nonet.compare.adapting",
    "pairing": "nonet.compare.pairing",
}


def home(cell: Cell) -> Any:
    """Returns the module for cells of this kind."""
    return importlib.import_module(_HOMES[cell.kind])


def run_cell(value: dict[str, Any], report: Report = lambda share, doing: None) -> dict[str, Any]:
    """Trains and measures what a cell says.

    Args:
        value: a cell as :meth:`Cell.to_json` writes it.
        report: told of the progress.

    Returns:
        The row: plain values that JSON can hold. An error is not caught here.
    """
    import torch
    from transformers import set_seed
    from transformers.utils import logging

    from nonet.compare.provenance import provenance

    cell = Cell.from_json(value)
    work = cell.work
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(work.threads)
    torch.use_deterministic_algorithms(True, warn_only=work.device != "cpu")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    set_seed(cell.seed)
    started, began = datetime.now(UTC).isoformat(timespec="seconds"), time.perf_counter()
    found = home(cell).run(cell, report)
    return {
        "format": FORMAT,
        "cell": cell.to_json(),
        "state": "done",
        "error": None,
        "started": started,
        "seconds": time.perf_counter() - began,
        "learning_rate": cell.learning_rate,
        **found,
        "provenance": provenance(work.device, work.threads),
    }


def failed_row(value: dict[str, Any], error: str, state: str = "failed") -> dict[str, Any]:
    """Returns the row of a cell that did not finish; ``state`` is failed or diverged."""
    return {"format": FORMAT, "cell": value, "state": state, "error": error}
