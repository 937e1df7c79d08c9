"""Runs the experiments of claims one after the other, and keeps what each found at once."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from rich.table import Table
from transformers.utils import logging

from nonet.bench.results import folder
from nonet.claim import Claim, Finding, Untestable
from nonet.compare.provenance import provenance
from nonet.compare.store import FORMAT, Record, append_row
from nonet.ledger.lab import Lab
from nonet.ledger.rows import NAME, read_ledger
from nonet.registry import load, methods
from nonet.registry import method as method_named
from nonet.screen import console
from nonet.writing import check_writable

DONE, FAILED, STOPPED = 0, 1, 3


def claims(method: str) -> tuple[Claim, ...]:
    """Returns the claims of a method; raises ValueError for a name that is not known."""
    return load(f"nonet.{method_named(method).name}.claims:CLAIMS")


def run_claims(names: Iterable[str], out: Path | None, *, full: bool, resume: bool, as_json: bool) -> int:
    """Tests the claims of methods and returns the exit code: 0 done, 1 one failed, 3 stopped early.

    Args:
        names: of methods; all of them when there are none.
        out: the directory of the ledger.
        full: test at the full size.
        resume: leave out what has a row of this size.
        as_json: print one document in place of a table.

    Raises:
        ValueError: a method is not known, or a row is broken.
        OSError: a row cannot be written.
    """
    logging.set_verbosity_error()
    people, directory = console(stderr=True), folder(out)
    known = (
        {(r["method"], r["claim"]) for r in read_ledger(directory) if r["full"] == full} if resume else set()
    )
    todo = [
        (name, claim)
        for name in tuple(names) or tuple(m.name for m in methods())
        for claim in claims(name)
        if (name, claim.name) not in known
    ]
    check_writable(directory)  # not after the first experiment
    directory.mkdir(parents=True, exist_ok=True)
    rows: list[Record] = []
    code = DONE
    try:
        for number, (name, claim) in enumerate(todo, 1):
            people.print(f"[{number}/{len(todo)}] {name}: {claim.name}")
            row = tested(name, claim, full, lambda doing: people.print(f"  {doing}"))
            if row["state"] == "failed":
                code = FAILED
            else:
                append_row(directory / NAME, row)
            rows.append(row)
            people.print(f"  {row['verdict']}: {row['evidence']} ({row['seconds']:.0f} s)")
    except KeyboardInterrupt:
        code = STOPPED
        people.print("Stopped early; continue with the same command and --resume")
    if as_json:
        sys.stdout.write(json.dumps({"rows": rows, "out": str(directory)}, indent=1, allow_nan=False) + "\n")
    elif rows:
        console().print(_table(rows))
    people.print(f"{sum(row['state'] == 'done' for row in rows)} rows added to {directory / NAME}")
    return code


def tested(method: str, claim: Claim, full: bool, say: Callable[[str], None]) -> Record:
    """Returns the row of a claim: what the paper says, what was found, how long that took, and where.

    An experiment that breaks gives a row whose ``state`` is ``failed`` and which is not kept in the ledger.
    """
    torch.manual_seed(0)
    began, state = time.perf_counter(), "done"
    try:
        finding = claim.test(Lab(full, say))
    except Untestable as reason:
        finding = Finding("cannot be tested here", str(reason))
    except Exception as error:  # noqa: BLE001  (one broken experiment must not take the others with it)
        traceback.print_exc()
        state, finding = "failed", Finding("cannot be tested here", f"{type(error).__name__}: {error}")
    said = {"statement": claim.statement, "source": claim.source, "experiment": claim.experiment}
    date = datetime.now(UTC).isoformat("T", "seconds")
    return {
        "format": FORMAT,
        "method": method,
        "claim": claim.name,
        "full": full,
        "state": state,
        **said,
        **json.loads(json.dumps(asdict(finding))),
        "seconds": time.perf_counter() - began,
        "provenance": {**provenance("cpu", torch.get_num_threads()), "date": date},
    }


def _table(rows: list[Record]) -> Table:
    table = Table(title="What the papers claim, and what was found on this machine", show_lines=True)
    for column in ("method", "claim", "verdict", "evidence"):
        table.add_column(column)
    for row in rows:
        table.add_row(row["method"], row["statement"], row["verdict"], row["evidence"])
    return table
