"""``nonet tandem``: train a small model to draft for a large one, and write with both."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

tandem = typer.Typer(
    no_args_is_help=True, help="Train a small model to draft for a large one, and write with both."
)

Model = Annotated[
    str, typer.Argument(help="The primary: smollm2, a model directory, or owner/name on the hub.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@tandem.command()
def train(
    model: Model,
    text: Annotated[str | None, typer.Argument(help="A file, a folder or a dataset on disk.")] = None,
    out: Annotated[Path, typer.Option(help="The directory to write.")] = Path("runs/tandem"),
    layers: Annotated[int, typer.Option(min=1, help="Layers of the secondary, taken from the primary.")] = 4,
    block: Annotated[int, typer.Option(min=1, help="Tokens of a block in training.")] = 4,
    loss: Annotated[str, typer.Option(help="ce, or distil: the primary's distribution too.")] = "distil",
    reading: Annotated[str, typer.Option(help="What is read: states or keys_values.")] = "states",
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; by default 300.")] = None,
    tokens: Annotated[int | None, typer.Option(min=1, help="Training tokens, instead of --steps.")] = None,
    window: Annotated[int, typer.Option(min=2, help="Tokens a sequence.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Sequences a step.")] = 4,
    learning_rate: Annotated[float | None, typer.Option(help="The peak; by default a tandem's own.")] = None,
    shortlist: Annotated[int, typer.Option(min=1, help="Frequent tokens to draft from.")] = 8192,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option(help="Of what is new and of the order of data.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint in --out.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a secondary that writes from what the primary has read, and say how much faster both write.

    Examples:
      nonet tandem train smollm2 src/ --out runs/tandem
    """
    from nonet.hub import expanded
    from nonet.training.fit import steps_of
    from nonet.training.pairing import Pairing, train_tandem

    pairing = Pairing(
        model=model,
        source=text,
        layers=layers,
        block=block,
        loss=loss,
        reading=reading,
        steps=steps_of(steps, tokens, batch, window, 300),
        window=window,
        batch=batch,
        learning_rate=learning_rate,
        shortlist=shortlist,
        dtype=dtype,
        seed=seed,
    )
    raise typer.Exit(train_tandem(pairing, expanded(out), resume=resume, as_json=as_json))


@tandem.command()
def generate(
    model: Model,
    directory: Annotated[Path, typer.Argument(help="What `nonet tandem train` wrote for this model.")],
    prompt: Annotated[
        str | None, typer.Option(help="The text to continue; - reads standard input, as does a pipe.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask an instruct model; print its answer.")] = False,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to write.")] = 128,
    block: Annotated[int, typer.Option(min=0, help="Tokens to draft in a round; 0 drafts none.")] = 4,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.0,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Sample from this share of likelihood.")
    ] = 1.0,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    as_json: Json = False,
) -> None:
    """Continue a prompt: the secondary drafts, the primary verifies, and the text is the primary's own.

    Examples:
      nonet tandem generate smollm2 runs/tandem --prompt "def main("
    """
    from nonet.data.text import given_prompt
    from nonet.generation import Asked, write_in_tandem
    from nonet.hub import expanded

    asked = Asked(given_prompt(prompt), chat, tokens, temperature, top_p, seed, as_json)
    write_in_tandem(model, expanded(directory), asked, block=block, dtype=dtype)
