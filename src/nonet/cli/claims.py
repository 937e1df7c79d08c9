"""``nonet claims``: what the papers say, put to the test on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def claims(
    methods: Annotated[list[str] | None, typer.Argument(help="Methods; all nine by default.")] = None,
    full: Annotated[bool, typer.Option("--full/--quick", help="Two hours for all, or ten minutes.")] = False,
    out: Annotated[Path | None, typer.Option(help="The folder of the ledger.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Leave out what was tested already.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Test what the papers claim, at the scale of this machine, and keep each verdict with its evidence.

    Examples:
      nonet claims
      nonet claims mamba position --full
      nonet claims --full --resume
    """
    from nonet.hub import expanded
    from nonet.ledger.run import run_claims

    out = None if out is None else expanded(out)
    raise typer.Exit(run_claims(methods or (), out, full=full, resume=resume, as_json=as_json))
