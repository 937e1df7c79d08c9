"""``nonet train``: train a language model on a text and keep it as a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def train(
    text: Annotated[
        str | None, typer.Argument(help="A file, a folder, a table with a column text, or a dataset on disk.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The directory to write.")] = Path("runs/model"),
    pattern: Annotated[str, typer.Option(help="Letters of the mixers, repeated whole.")] = "F",
    position: Annotated[str, typer.Option(help="What fills the position slot.")] = "rope",
    linear: Annotated[str, typer.Option(help="What fills the linear slot.")] = "dense",
    residual: Annotated[str, typer.Option(help="standard or reversible.")] = "standard",
    size: Annotated[str, typer.Option(help="tiny, small or base.")] = "tiny",
    tokens: Annotated[int | None, typer.Option(min=1, help="Training tokens; by default 2000000.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps, instead of --tokens.")] = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens a sequence.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Sequences a step.")] = 8,
    learning_rate: Annotated[
        float | None, typer.Option(help="By default one suited to size and slots.")
    ] = None,
    tokenizer: Annotated[str, typer.Option(help="bytes, or a Transformers tokenizer.")] = "bytes",
    seed: Annotated[int, typer.Option(help="Of weights and of the order of data.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint in --out.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Train a language model on a text and keep it as a directory that Transformers loads.

    Examples:
      nonet train book.txt --out runs/book
      nonet train --pattern MMF --size small --tokens 20000000
    """
    from nonet.hub import expanded
    from nonet.training import Recipe, train_model
    from nonet.training.fit import steps_of

    default = max(1, 2_000_000 // (batch * window))
    recipe = Recipe(
        source=text,
        pattern=pattern,
        position=position,
        linear=linear,
        residual=residual,
        size=size,
        tokens=steps_of(steps, tokens, batch, window, default) * batch * window,
        window=window,
        batch=batch,
        learning_rate=learning_rate,
        tokenizer=tokenizer,
        seed=seed,
    )
    raise typer.Exit(train_model(recipe, expanded(out), resume=resume, as_json=as_json))
