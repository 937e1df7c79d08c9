"""What a chapter shows: a picture, the library's own source, a table, the ledger, something to play with."""

from __future__ import annotations

import inspect
import io
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from IPython.display import SVG, Markdown, display
from matplotlib.figure import Figure

import nonet
from nonet.ledger.rows import newest, read_ledger
from nonet.registry import method as method_named
from nonet.select import absent, select

_NUMBER = re.compile(r"[-+]?[\d.,]+( ?[^\s\d,]+)?")  # with a unit
# What Jupyter's server and Visual Studio Code tell the kernels that they start.
_LIVE = ("JPY_SESSION_NAME", "VSCODE_PID")


def show(figure: Figure, says: str) -> None:
    """Shows a picture, as lines that stay sharp at any size, and closes it.

    Args:
        figure: of :func:`nonet.learn.canvas`.
        says: what there is to see, for those who cannot.
    """
    page = io.BytesIO()
    figure.savefig(page, format="svg", metadata={"Title": says, "Date": None})
    plt.close(figure)
    display(SVG(page.getvalue()))


def show_source(*objects: Any) -> None:
    """Shows the library's own source of functions or classes, and where it is."""
    root = Path(nonet.__file__).parent
    for thing in objects:
        thing = inspect.unwrap(thing)
        place = Path(inspect.getsourcefile(thing) or "").relative_to(root)
        source = textwrap.dedent(inspect.getsource(thing)).rstrip()
        display(Markdown(f"`src/nonet/{place.as_posix()}`\n\n```python\n{source}\n```"))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Shows a table; cells are Markdown, and numbers stand at the right."""
    cells = [[str(cell) for cell in row] for row in rows]
    rule = ["---:" if all(_NUMBER.fullmatch(row[i]) for row in cells) else "---" for i in range(len(columns))]
    display(Markdown("\n".join("| " + " | ".join(line) + " |" for line in (columns, rule, *cells))))


def show_claims(method: str) -> None:
    """Shows what the papers of a method claim, and what the ledger says was found."""
    rows = [row for row in newest(read_ledger()) if row["method"] == method]
    if not rows:
        display(Markdown(f"Nothing was tested on this machine yet. Test it: `nonet claims {method}`."))
        return
    show_table(
        ("the paper", "where", "what was found", "verdict"),
        [(row["statement"], row["source"], row["evidence"], f"**{row['verdict']}**") for row in rows],
    )


def show_implementations(method: str, dtype: str = "float32", device: str = "cpu") -> None:
    """Shows which implementation of each op of a method runs on this machine, and why."""
    if not method_named(method).ops:
        display(
            Markdown("No kernel of its own: it runs inside the model, on whatever the model's layers run on.")
        )
        return
    chosen = [
        (f"`{op.name}`", *select(op, device, dtype, missing=absent(op, device)))
        for op in method_named(method).ops
    ]
    show_table(("op", "runs on", "because"), chosen)


def play(draw: Callable[..., None], **choices: Sequence[Any]) -> None:
    """Lets a reader choose a function's arguments by sliders, where there is somebody to move them.

    On a page that was built before, ``draw`` is called once, with its own defaults.

    Args:
        draw: shows something; every argument has a default among its choices.
        **choices: the values that an argument can take, in order.
    """
    if not any(name in os.environ for name in _LIVE):
        draw()
        return
    import ipywidgets

    defaults = inspect.signature(draw).parameters
    sliders = {
        name: ipywidgets.SelectionSlider(
            options=values, value=defaults[name].default, description=name, continuous_update=False
        )
        for name, values in choices.items()
    }
    ipywidgets.interact(draw, **sliders)
