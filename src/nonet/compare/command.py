"""What ``nonet compare`` does: plan, show the plan, run it with progress, report."""

from __future__ import annotations

import shlex
import sys
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from nonet.compare import run as runner
from nonet.compare import store
from nonet.compare.asked import Asked, check_sources, make_plan
from nonet.compare.cost import Step, seconds_of
from nonet.compare.plan import Cell, Combo, Plan
from nonet.compare.report import require_extra, write_report
from nonet.compare.store import ROWS, finished, read_rows
from nonet.compare.tables import text_tables
from nonet.screen import console
from nonet.writing import check_writable

DONE, FAILED, STOPPED = 0, 1, 3


def execute(asked: Asked, out: Path | None, *, resume: bool, dry_run: bool, as_json: bool) -> int:
    """Does what was asked and returns the exit code: 0 done, 1 a cell failed, 3 stopped early.

    Raises:
        ValueError: an option is wrong, or the text cannot serve.
        OSError: a file cannot be read or written.
    """
    people = console(stderr=as_json)
    if not dry_run:
        require_extra()
    if resume:
        assert out is not None  # the command line asks for it
        plan = runner.opened(out)
        left = runner.pending(plan, out)
        check_writable(out)
        if left:
            check_sources(plan)
        people.print(f"{len(plan.cells) - len(left)} of {len(plan.cells)} cells are done")
    else:
        if out or not dry_run:
            out = out or Path("runs") / f"compare-{datetime.now():%Y%m%d-%H%M%S}"
            runner.check_new(out)
        plan, steps = make_plan(asked, people)
        people.print(plan_table(plan, steps))
        for line in plan.left_out:
            people.print(line)
    if dry_run or out is None:
        if as_json:
            sys.stdout.write(store.as_json(plan.to_json(), indent=1) + "\n")
        return DONE
    if not resume:
        runner.begin(plan, out)
    code = _run_all(plan, out, people)
    report = write_report(out)
    rows = read_rows(out / ROWS)
    failed = len({row["cell"]["id"] for row in rows} - finished(rows).keys())
    if as_json:
        found = {"report": str(report), "exit": code, "failed": failed, "plan": plan.to_json(), "rows": rows}
        sys.stdout.write(store.as_json(found, indent=1) + "\n")
    for table in text_tables(plan.to_json(), rows):
        people.print(table)
    again = f"nonet compare --resume --out {shlex.quote(str(out))}"
    if failed:
        people.print(
            f"{failed} of {len(plan.cells)} cells failed; the report says why. To try again: {again}"
        )
    if code == STOPPED:
        people.print(f"Stopped early; continue with: {again}")
    people.print(f"Report: {report}")
    return code


def plan_table(plan: Plan, steps: dict[Combo, Step]) -> Table:
    """Returns the plan for people: one line a cell, and the sum."""
    total = plan.estimate
    memory = f"{(total['bytes'] or 0) / 2**20:,.0f} MiB"
    table = Table(
        title=f"{len(plan.cells)} cells, {plan.work.tokens:,} tokens each on {plan.corpus['name']}",
        caption=f"about {_minutes(total['seconds'] or 0)}, and {memory} for the largest model",
    )
    for column in ("cell", "trained", "learning rate", "about", "MiB"):
        table.add_column(column, justify="left" if column == "cell" else "right")
    for cell in plan.cells:
        step = steps[cell.combo]
        table.add_row(
            cell.name,
            f"{step.trained:,}",
            f"{cell.learning_rate:g}",
            _minutes(seconds_of(cell, step)),
            f"{step.bytes / 2**20:,.0f}",
        )
    return table


def _run_all(plan: Plan, out: Path, people: Console) -> int:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    expected = float(plan.estimate.get("seconds") or 1.0) / len(plan.cells)
    begin = datetime.now()
    todo = runner.pending(plan, out)
    with Progress(*columns, console=people, transient=True) as bar:
        task = bar.add_task("starting", total=len(todo), left="")
        finished = 0

        def progress(cell: Cell, share: float, doing: str) -> None:
            nonlocal finished
            over = share >= 1.0
            finished += over
            done = finished + (0.0 if over else share)
            spent = (datetime.now() - begin).total_seconds()
            # The plan's estimate counts for little once cells have shown what they take.
            rate = (spent + expected) / (done + 1)
            left = _minutes(rate * (len(todo) - done))
            bar.update(task, completed=done, description=f"{cell.name}: {doing}", left=f"{left} left")
            if over and not bar.live.console.is_terminal:
                people.print(f"[{finished}/{len(todo)}] {cell.name}: {doing}, {left} left")

        try:
            failures = runner.run(plan, out, progress)
        except KeyboardInterrupt:
            return STOPPED
    return FAILED if failures else DONE


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
