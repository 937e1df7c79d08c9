"""Where the chapters are, and how they become notebooks that a reader can run and change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nonet
from nonet.extras import pip_install
from nonet.registry import methods
from nonet.writing import remove_abandoned, write_whole


def chapter(method: str) -> Path:
    """Returns the script of a method's chapter: that of the installed package, else of the checkout.

    Raises:
        ValueError: there is no such method.
        FileNotFoundError: this installation has no chapters.
    """
    known = [m.name for m in methods()]
    if method not in known:
        raise ValueError(f"method={method!r} is not known; choose from {', '.join(known)}")
    package = Path(nonet.__file__).resolve().parent
    places = (package / "learn" / "methods", package.parent.parent / "docs" / "methods")
    found = next((file for place in places if (file := place / f"{method}.py").is_file()), None)
    if found is None:
        raise FileNotFoundError(f"this installation has no chapter on {method}; reinstall nonet")
    return found


def write_notebooks(folder: Path) -> dict[str, Path]:
    """Writes the chapters that are not there yet as notebooks, and returns where each is.

    A notebook that is there stays as it is, since a reader may have changed it.

    Raises:
        OSError: a file cannot be written.
        ModuleNotFoundError: the extra ``learn`` is not installed.
    """
    try:
        import jupytext
    except ModuleNotFoundError as error:
        raise _without_extra() from error
    folder.mkdir(parents=True, exist_ok=True)
    remove_abandoned(folder)
    places = {method.name: folder / f"{method.name}.ipynb" for method in methods()}
    for name, place in places.items():
        if not place.exists():
            notebook = jupytext.read(chapter(name), fmt="py:percent")
            write_whole(place, jupytext.writes(notebook, fmt="ipynb"))
    return places


def open_jupyter(place: Path, *, browser: bool) -> int:
    """Opens a notebook, or a folder of them, in JupyterLab, and returns its exit code when it ends.

    Raises:
        ModuleNotFoundError: the extra ``learn`` is not installed.
    """
    beside = Path(sys.executable).with_name("jupyter")
    jupyter = str(beside) if beside.exists() else shutil.which("jupyter")
    if jupyter is None or subprocess.run([jupyter, "lab", "--version"], capture_output=True).returncode:
        raise _without_extra()
    options = [] if browser else ["--no-browser"]
    if hasattr(os, "getuid") and os.getuid() == 0:  # as in a container, where Jupyter would refuse
        options.append("--allow-root")
    return subprocess.call([jupyter, "lab", *options, str(place)])


def _without_extra() -> ModuleNotFoundError:
    return ModuleNotFoundError(f"chapters are read in JupyterLab; install it with: {pip_install('learn')}")
