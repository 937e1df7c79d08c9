"""What the tests of this folder share: the tiny workloads, and a made-up row."""

import copy

from nonet.bench.run import FAMILIES
from nonet.bench.workloads import workloads

TINY = {workload.name: workload for workload in workloads(quick=True)}
OPS = [workload for workload in TINY.values() if workload.kernel not in FAMILIES]
MODELS = [workload for workload in TINY.values() if workload.kernel == "mamba"]
ADAPTERS = [workload for workload in TINY.values() if workload.kernel == "lora"]
SCAN = TINY["selective_scan forward C48 T48"]

_SPREAD = {"median": 0.002, "low": 0.0019, "high": 0.0021, "rounds": 15}
_ROW = {
    "format": 1,
    "kernel": "hgrn_scan",
    "name": "hgrn_scan forward T2048",
    "what": "forward",
    "sizes": {"B": 4, "C": 1024, "T": 2048},
    "dtype": "float32",
    "channels_last": True,
    "series": False,
    "quick": False,
    "memory_kept": False,
    "threads": 2,
    "state": "done",
    "reason": None,
    "checked_on": {"B": 4, "C": 1024, "T": 2048},
    "plain_error": 1e-7,
    "contenders": [
        {"name": "nonet", "package": None, "error": 1e-7, "failure": None, **_SPREAD},
        {
            "name": "eager loop",
            "package": "torch",
            "error": 1e-7,
            "failure": None,
            "median": 0.03,
            "low": 0.02,
            "high": 0.04,
            "rounds": 7,
            "ratio": {"median": 15.0, "low": 14.0, "high": 16.0},
        },
    ],
    "cost": {"bytes": {"formula": "3*s*B*C*T", "count": 100_663_296}},
    "limits": {"bytes": 1e11, "operations": None, "exponentials": None, "buffer": 2**28},
    "implementations": {"hgrn_scan": {"name": "cpu", "reason": "preferred, and able"}},
    "provenance": {
        "commit": "3f0c9a41d2b0", "dirty": False, "nonet": "0.1.0", "python": "3.11.7", "torch": "2.13.0",
        "transformers": "5.23.0", "platform": "Linux", "cpu": "AMD EPYC", "gpu": None, "cores": 2,
        "threads": 2, "device": "cpu", "peers": {"torch": "2.13.0"}, "date": "2026-11-22T12:00:00+00:00",
        "command": "nonet bench",
    },
    "shares": {"bytes": 0.5},
}  # fmt: skip


def row(date="2026-11-22", cpu="AMD EPYC", **changes):
    """Returns the made-up row with some of it changed."""
    made = {**copy.deepcopy(_ROW), **changes}
    made["provenance"] |= {"date": f"{date}T12:00:00+00:00", "cpu": cpu, "threads": made["threads"]}
    return made
