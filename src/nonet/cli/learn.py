"""``nonet learn``: the chapters, to be read, run and changed in JupyterLab."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def learn(
    method: Annotated[
        str | None, typer.Argument(help="The chapter to open; by default their folder.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where the notebooks are put.")] = Path("nonet-chapters"),
    browser: Annotated[bool, typer.Option(help="Open a browser.")] = True,
    write_only: Annotated[
        bool, typer.Option("--write-only", help="Write the notebooks, open nothing.")
    ] = False,
) -> None:
    """Write the nine chapters as notebooks, where they are not there yet, and open them in JupyterLab.

    Examples:
      nonet learn
      nonet learn mamba
      nonet learn --write-only --out lessons
    """
    from nonet.hub import expanded
    from nonet.learn.chapters import chapter, open_jupyter, write_notebooks

    if method is not None:
        chapter(method)  # a wrong name is said before anything is written
    out = expanded(out)
    places = write_notebooks(out)
    typer.echo(f"{len(places)} chapters in {out}", err=True)
    if not write_only:
        raise typer.Exit(open_jupyter(out if method is None else places[method], browser=browser))
