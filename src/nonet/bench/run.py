"""One workload measured: right first, then timed in turns, then what it costs."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from types import ModuleType
from typing import Any

import torch

from nonet.bench import adapters, memory, models, ops
from nonet.bench.correct import describe
from nonet.bench.cost import cost
from nonet.bench.limits import limits
from nonet.bench.peers import Contender
from nonet.bench.timing import FULL, QUICK, in_turns, spread
from nonet.bench.workloads import Workload
from nonet.compare.provenance import provenance
from nonet.compare.store import FORMAT, Record

FAMILIES = {"mamba": models, "lora": adapters}  # whole models; all else are operations


def measure(
    workload: Workload, threads: int, *, peers: bool, quick: bool, memory_kept: bool = False
) -> Record:
    """Returns the row of a workload on so many threads.

    ``state`` is ``done``, or ``failed`` when anything of ours is not right; then nothing is timed.
    ``contenders`` holds ours first. Each has its error, and in a row that is done its spread of seconds,
    the number of rounds, and but for the first the spread of its time over ours round by round. A contender
    that cannot run here has ``failure`` instead.
    """
    family = FAMILIES.get(workload.kernel, ops)
    with _threads(threads):
        them = family.contenders(workload, peers)
        checked = family.check(workload, them)
        found = [{"name": c.name, "package": c.package, **checked["found"][c.name]} for c in them]
        wrong = [entry["failure"] for entry in found if entry["failure"] and entry["package"] is None]
        if not wrong:
            _time(family, workload, them, found, quick)
        letters = {} if family is ops else {"P": family.weights(workload)}
        row: Record = {
            "format": FORMAT,
            "kernel": workload.kernel,
            "name": workload.name,
            "what": workload.what,
            "sizes": dict(workload.sizes),
            "dtype": workload.dtype,
            "channels_last": workload.channels_last,
            "series": workload.series,
            "quick": quick,
            "memory_kept": memory_kept,
            "threads": threads,
            "state": "failed" if wrong else "done",
            "reason": "; ".join(wrong) or None,
            "checked_on": checked["on"],
            "plain_error": checked["plain"],
            "contenders": found,
            "cost": cost(workload, **letters),
            "limits": limits(threads, quick),
            "implementations": {op: choice._asdict() for op, choice in family.chosen(workload).items()},
            "provenance": _provenance(threads, them),
        }
    row["shares"] = _shares(row)
    return row


def _time(
    family: ModuleType, workload: Workload, them: list[Contender], found: list[Any], quick: bool
) -> None:
    """Adds times and memory to what was found: ours against each of the others in turns."""
    effort = QUICK if quick else FULL
    ours = family.bind(workload, them[0])
    all_ours: list[float] = []
    for contender, entry in zip(them[1:], found[1:], strict=True):
        if entry["failure"]:
            continue
        try:
            other = family.bind(workload, contender)
            mine, theirs = in_turns([ours.timed, other.timed], effort)
            entry |= _memory(workload, other)
        except Exception as raised:
            if contender.package is None:
                raise
            entry["failure"] = describe(raised)  # such as memory that ran out at the full size
            continue
        all_ours += mine
        entry |= {**spread(theirs), "rounds": len(theirs)}
        entry["ratio"] = spread([b / a for a, b in zip(mine, theirs, strict=True)])
    if not all_ours:
        [all_ours] = in_turns([ours.timed], effort)
    ours.timed.before()
    found[0] |= {**spread(all_ours), "rounds": len(all_ours), **_memory(workload, ours)}


def _memory(workload: Workload, bound: ops.Bound) -> dict[str, int | None]:
    """Returns what training remembers, and the rise of resident memory, where they matter."""
    if workload.what == "training forward":
        return {"kept": memory.kept(bound.timed.call, bound.given), "peak": memory.peak(bound.timed.call)}
    if workload.what in ("forward+backward", "training step"):
        return {"peak": memory.peak(bound.timed.call)}
    return {}


def _shares(row: Record) -> dict[str, float]:
    """Returns which part of each limit ours reaches, for what is both counted and limited."""
    median = row["contenders"][0].get("median")
    return {
        kind: counted["count"] / median / row["limits"][kind]
        for kind, counted in row["cost"].items()
        if median and row["limits"][kind]
    }


def _provenance(threads: int, them: list[Contender]) -> Record:
    origin = provenance("cpu", threads)
    for name in ("dtype", "deterministic"):  # the row's own, and of no meaning here
        del origin[name]
    packages = sorted({c.package for c in them if c.package})
    return {
        **origin,
        "peers": {name: _version(name) for name in packages},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["nonet", *sys.argv[1:]]),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
