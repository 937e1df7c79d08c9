"""The command line: one file per command, which has the file's name.

Nothing heavy is imported before a command runs, so that ``nonet --help`` answers at once.
"""

from __future__ import annotations

import importlib
import io
import logging
import os
import pkgutil
import sys
from typing import Annotated

import typer

import nonet
from nonet.screen import Printable, printable

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
    _refuse_several_processes()
    handler = logging.StreamHandler()  # to stderr: stdout is for results
    handler.setFormatter(Printable("%(message)s"))
    logging.basicConfig(handlers=[handler])
    logging.getLogger("nonet").setLevel(logging.INFO)


def _refuse_several_processes() -> None:
    """Raises ValueError where a launcher started several processes, which would all do and write the same."""
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        count = os.environ.get(name, "")
        if count.isdigit() and int(count) > 1:
            raise ValueError(
                f"{name}={count}: nonet runs in one process; start it without torchrun, accelerate launch or "
                f"mpirun, or unset {name}"
            )


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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that lacks a character is shown its number
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    except (ImportError, OSError, ValueError) as error:
        typer.echo(f"nonet: {printable(error)}", err=True)
        raise SystemExit(1) from error
