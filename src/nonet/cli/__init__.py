"""The command line: every file of this folder is a command, what has the file's name in it.

Nothing heavy is imported before a command runs, so that ``nonet --help`` answers at once.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
from typing import Annotated

import typer

import nonet

app = typer.Typer(
    name="nonet",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit status: 0 done, 1 failed or an option refused, 2 a command line that cannot be read, "
    "3 stopped early with what was done so far.",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"nonet {nonet.__version__}")
        raise typer.Exit


@app.callback()
def _nonet(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Nine recent methods in transformers, in one model and one comparison."""
    logging.basicConfig(format="%(message)s")  # to stderr: stdout is for results
    logging.getLogger("nonet").setLevel(logging.INFO)


for _file in pkgutil.iter_modules(__path__):
    _command = getattr(importlib.import_module(f"{__name__}.{_file.name}"), _file.name)
    if isinstance(_command, typer.Typer):  # several commands under one name
        app.add_typer(_command, name=_file.name)
    else:
        app.command()(_command)


def main() -> None:
    """Runs the command line; an expected error becomes one line on stderr and the exit status 1."""
    for switch in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
        os.environ.setdefault(switch, "1")
    try:
        app()
    except (ImportError, OSError, ValueError) as error:
        typer.echo(f"nonet: {error}", err=True)
        raise SystemExit(1) from error
