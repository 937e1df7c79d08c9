"""Where a number comes from: the code, the libraries, the machine."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import nonet


def provenance(device: str, threads: int) -> dict[str, Any]:
    """Returns what every row carries, so that its figures can be traced and repeated."""
    import torch

    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
        "nonet": nonet.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cores": os.cpu_count(),
        "threads": threads,
        "device": device,
        "dtype": "float32",
        "deterministic": True,
    }


def cpu_model() -> str:
    """Returns the processor's name, and on Linux family and model, since one name can mean several."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.split(r"\s*: ?", line, maxsplit=1) for line in text.split("\n\n")[0].splitlines())
    if "model name" not in fields:
        return platform.processor() or platform.machine()
    kind = [f"{name.split()[-1]} {fields[name]}" for name in ("cpu family", "model") if name in fields]
    return f"{fields['model name']} ({', '.join(kind)})"


def _git(*arguments: str) -> str | None:
    """Returns what git says of the checkout that this package lies in, or None outside of one."""
    here = Path(nonet.__file__).resolve().parent
    try:
        run = subprocess.run(
            ["git", "-C", str(here), *arguments],
            capture_output=True,
            encoding="utf-8",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
