"""The report of a comparison: one file that needs nothing else, made from the plan and the rows.

Needs the extra ``report``. Whatever a user or an error wrote is escaped; the page's own policy forbids
every request.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from nonet.compare import units
from nonet.compare.advice import advise
from nonet.compare.looks import looks
from nonet.compare.plots import recall_plots, slot_plots
from nonet.compare.store import REPORT, ROWS, Record, finished, read_plan, read_rows
from nonet.compare.summary import Slot, first_line, seeds_run, summarise
from nonet.compare.tables import crossing_sheet, main_sheet, number_sheets, recall_sheet, settings_sheet
from nonet.extras import pip_install
from nonet.registry import SLOTS
from nonet.writing import write_whole

_HERE = Path(__file__).parent
_EXPORT = "window.vegaEmbed = vegaEmbed;"


def write_report(directory: Path) -> Path:
    """Writes ``report.html`` from what the folder holds, however much of the plan has run.

    Args:
        directory: the folder of a comparison.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: the folder holds no plan.
        ImportError: the extra ``report`` is not installed.
        OSError: the folder cannot be written.
        ValueError: the plan or a row cannot be read.
    """
    plan, rows = read_plan(directory), read_rows(directory / ROWS)
    path = directory / REPORT
    write_whole(path, render(plan, rows))
    return path


def require_extra() -> None:
    """Raises ImportError when the extra ``report`` is not installed."""
    for package in ("jinja2", "vl_convert"):
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"a report needs the package {package!r}; install it with: {pip_install('report')}"
            )


def render(plan: Record, rows: Sequence[Record]) -> str:
    """Returns the page; raises ImportError when the extra ``report`` is not installed."""
    require_extra()
    import jinja2
    import vl_convert

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        **context(plan, rows),
        # Within a script element only its end tag has a meaning; in JavaScript this says the same.
        vega=vl_convert.javascript_bundle(_EXPORT).replace("</script", r"<\/script"),
    )


def context(plan: Record, rows: Sequence[Record]) -> dict[str, Any]:
    """Returns what the template shows."""
    done = finished(rows)
    failures = _failures(plan, rows, done)
    created = datetime.fromisoformat(plan["created"])
    return {
        "plan": plan,
        "seeds": seeds_run(plan, rows),
        "slots": [_slot(slot, plan) for slot in summarise(plan, rows)],
        "created": f"{created.day} {created:%B %Y}",
        "waiting": sum(cell["id"] not in done for cell in plan["cells"]) - len(failures),
        "failures": failures,
        "environments": _environments(plan, done),
        "units": units,
    }


def _slot(slot: Slot, plan: Record) -> dict[str, Any]:
    advice = advise(slot, plan)
    return {
        "slot": slot,
        "advice": advice,
        "looks": looks(slot),
        "main": main_sheet(slot, advice, plan),
        "crossings": crossing_sheet(slot),
        "plots": slot_plots(slot, plan),
        "numbers": number_sheets(slot),
        "recall": recall_sheet(slot),
        "recall_plots": recall_plots(slot),
        "settings": settings_sheet(slot),
    }


def _failures(plan: Record, rows: Sequence[Record], done: dict[str, Record]) -> list[dict[str, str]]:
    """The last error of every cell of the plan that has no finished row."""
    last = {row["cell"]["id"]: row["error"] or "" for row in rows if row["state"] != "done"}
    return [
        {
            "cell": f"{_filled(cell)}: {cell['kind']}, seed {cell['seed']}",
            "line": first_line(last[cell["id"]]),
            "whole": last[cell["id"]],
        }
        for cell in plan["cells"]
        if cell["id"] in last and cell["id"] not in done
    ]


def _filled(cell: Record) -> str:
    return ", ".join(cell[slot] for slot in SLOTS if cell.get(slot))


def _environments(plan: Record, done: dict[str, Record]) -> list[dict[str, Any]]:
    """Where the rows were measured; several when a comparison was continued somewhere else."""
    found = [done[cell["id"]]["provenance"] for cell in plan["cells"] if cell["id"] in done]
    distinct = [env for i, env in enumerate(found) if env not in found[:i]]
    return distinct or [plan["environment"]]
