"""Builds the notebook at the root from docs/front.py and from what its chapters mark with the tag ``front``.

``python docs/notebook.py`` says whether it is up to date; ``--run`` runs all cells; ``--write`` writes it
with their outputs.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbclient
import nbformat
import tables

from nonet import methods
from nonet.registry import Method
from nonet.writing import write_whole

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "Recent Methods in Transformers.ipynb"
CHAPTERS = ROOT / "docs" / "methods"
TAG = "front"


def built() -> Any:
    """Returns the notebook without outputs; its metadata holds a digest of all that it shows."""
    notebook = jupytext.read(ROOT / "docs" / "front.py", fmt="py:percent")
    for cell in notebook.cells:
        cell.source = cell.source.replace("<!-- table:uses -->", tables.uses_table("docs/methods/"))
    for number, method in enumerate(methods(), 1):
        notebook.cells += _section(number, method)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "nonet": _digest(notebook),
    }
    return notebook


def _section(number: int, method: Method) -> list[Any]:
    first, *others = (f"[{paper}](https://arxiv.org/abs/{paper})" for paper in method.papers)
    papers = f"Paper: {first}" + (f"; also: {', '.join(others)}" if others else "") + "."
    title = f"## {number}. {method.title}\n\n*{method.idea[0].upper()}{method.idea[1:]}.* {papers}"
    end = f"Further: [the chapter](docs/methods/{method.name}.py), or `nonet learn {method.name}`."
    marked = _marked(method)
    for cell in marked:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            cell.source = "#" + cell.source
    new = nbformat.v4.new_markdown_cell
    return [new(title), *marked, new(end)]


def _marked(method: Method) -> list[Any]:
    """Returns the cells of a method's chapter that the notebook takes."""
    chapter = jupytext.read(CHAPTERS / f"{method.name}.py", fmt="py:percent")
    return [cell for cell in chapter.cells if TAG in cell.metadata.get("tags", ())]


def _digest(notebook: Any) -> str:
    """Returns a digest of the cells and of the library's files whose source they can show."""
    parts = [cell.cell_type + cell.source for cell in notebook.cells]
    parts += [Path(file).read_text(encoding="utf-8") for file in _shown()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _shown() -> list[str]:
    """Returns the files of what cells show, and of what shows and checks it."""
    from nonet.learn import checks, page

    found = {inspect.getfile(checks), inspect.getfile(page)}
    for method in methods():
        for cell in _marked(method):
            for call in re.findall(r"show_source\((.*?)\)", cell.source, re.DOTALL):
                files = (
                    ROOT / "src" / "nonet" / method.name / f"{name}.py" for name in re.findall(r"\w+", call)
                )
                found |= {str(file) for file in files if file.exists()}
    return sorted(found)


def stale() -> bool:
    """Says whether the notebook that is there shows something else than its sources."""
    if not NOTEBOOK.exists():
        return True
    return nbformat.read(NOTEBOOK, 4).metadata.get("nonet") != built().metadata["nonet"]


def main() -> int:
    """Returns 0 when the notebook is up to date, or has run."""
    parser = argparse.ArgumentParser(description="The notebook at the root, from its sources.")
    parser.add_argument("--run", action="store_true", help="run it; a cell that fails is an error")
    parser.add_argument("--write", action="store_true", help="run it and write it")
    asked = parser.parse_args()
    if not (asked.run or asked.write):
        if stale():
            sys.stderr.write(f"{NOTEBOOK.name} is out of date; run python docs/notebook.py --write\n")
        return int(stale())
    notebook = built()
    client = nbclient.NotebookClient(
        notebook, timeout=180, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    )
    client.execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # when it ran says nothing
    if asked.write:
        write_whole(NOTEBOOK, nbformat.writes(notebook) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
