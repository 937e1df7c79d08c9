"""Runs campaigns: many random attempts to break nonet, and one table of how they ended.

    python tests/campaigns/run.py [calls kills disks ...] [--seed 0] [--count 10000] [--sanitize]

A campaign is a module of this folder with ``COUNT``, how many attempts make it whole, ``LIMIT``, the seconds
after which one hangs, and ``attempt(seed, number)``, which returns ``"served"`` or ``"refused"`` and raises
WrongError where neither is right. The exit status is 1 where any attempt failed. A failed one is repeated by
its number.
"""

import argparse
import importlib
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table
from workers import outcomes

HERE = Path(__file__).parent
CAMPAIGNS = ("calls", "files", "kills", "disks")
SHOWN = 50  # failures that are printed whole


def main(arguments):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("campaigns", nargs="*", help=f"of {', '.join(CAMPAIGNS)}; all by default")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other attempts")
    parser.add_argument("--count", type=int, help="attempts of each campaign")
    parser.add_argument("--only", type=int, help="the number of a single attempt")
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)),
    )
    parser.add_argument(
        "--sanitize", action="store_true", help="stop kernels at bad memory and undefined behaviour"
    )
    given = parser.parse_args(arguments)
    console, failures = Console(soft_wrap=True), 0
    table = Table("campaign", *("tried", "served", "refused", "failed", "seconds"))
    with tempfile.TemporaryDirectory() as folder:
        environment = sanitized(Path(folder)) if given.sanitize else {}
        for name in given.campaigns or CAMPAIGNS:
            begin, counts = time.monotonic(), Counter()
            campaign = importlib.import_module(name)
            numbers = range(given.count or campaign.COUNT) if given.only is None else [given.only]
            for outcome in outcomes(name, given.seed, numbers, given.workers, campaign.LIMIT, environment):
                counts[outcome.verdict] += 1
                if outcome.verdict == "failed" and counts["failed"] <= SHOWN:
                    console.print(f"{name} {outcome.number}: {outcome.why}", markup=False, highlight=False)
            failures += counts["failed"]
            ends = (
                counts.total(),
                counts["served"],
                counts["refused"],
                counts["failed"],
                time.monotonic() - begin,
            )
            table.add_row(name, *(f"{end:.0f}" for end in ends))
    console.print(table)
    return int(failures > 0)


def sanitized(folder):
    """Builds the C library with sanitizers, and returns what to put into the environment to use it."""
    sys.path.insert(0, str(HERE.parent / "native"))
    return importlib.import_module("outside").sanitized(folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
