"""``nonet predict``: label texts with a model that was taught labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def predict(
    model: Annotated[str, typer.Argument(help="smollm2, a model directory, or owner/name on the hub.")],
    file: Annotated[Path, typer.Argument(help="A text a line, or a table with a column text.")],
    adapter: Annotated[
        Path | None, typer.Option(help="The directory of an adapter that was taught labels.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print the label of every text of a file, one a line; with --json the probability of every label too.

    The model, or its adapter, is what nonet finetune wrote for labelled examples.

    Examples:
      nonet predict runs/topics mail.txt
      nonet predict smollm2 mail.csv --adapter runs/labels --json
    """
    from nonet.hub import expanded
    from nonet.prediction import predict as run

    run(model, expanded(file), adapter=None if adapter is None else expanded(adapter), as_json=as_json)
