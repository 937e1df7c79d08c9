"""The process around a cell: reads it from standard input, writes progress and the row to standard output.

One JSON object a line. The process leaves when standard input closes, so that none outlives the
comparison that began it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from typing import Any

from nonet.compare.cell import failed_row, run_cell
from nonet.compare.store import as_json
from nonet.training.diverged import DivergedError


def main() -> None:
    """Runs the cell on the first line of standard input."""
    value = json.loads(sys.stdin.readline())

    def leave_with_the_parent() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=leave_with_the_parent, daemon=True).start()
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints, from C too, must not be taken for a row

    def say(message: dict[str, Any]) -> None:
        out.write(as_json(message) + "\n")
        out.flush()

    try:
        row = run_cell(value, lambda share, doing: say({"share": share, "doing": doing}))
    except Exception as error:  # noqa: BLE001  (a failed cell is a row that says why, whatever the reason)
        traceback.print_exc()
        state = "diverged" if isinstance(error, DivergedError) else "failed"
        row = failed_row(value, f"{type(error).__name__}: {error}", state)
    say({"row": row})


if __name__ == "__main__":
    main()
