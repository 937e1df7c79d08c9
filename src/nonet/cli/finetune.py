"""``nonet finetune``: teach a pretrained model a text, answers or labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def finetune(
    model: Annotated[str, typer.Argument(help="smollm2, a model directory, or owner/name on the hub.")],
    data: Annotated[
        str | None,
        typer.Argument(help="Text, or .jsonl, .json, .csv or .tsv; by default Python's standard library."),
    ] = None,
    method: Annotated[str, typer.Option(help="lora, dora, prompt, prefix, ptuning, pet or full.")] = "lora",
    out: Annotated[Path, typer.Option(help="The directory to write.")] = Path("runs/tuned"),
    steps: Annotated[int | None, typer.Option(min=1, help="Optimiser steps; by default 200.")] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Training tokens, instead of --steps; short items count whole.")
    ] = None,
    window: Annotated[int, typer.Option(min=2, help="The most tokens of an item.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Items a step.")] = 4,
    learning_rate: Annotated[float | None, typer.Option(help="By default one suited to the method.")] = None,
    rank: Annotated[int, typer.Option(min=1, help="Of LoRA and DoRA.")] = 8,
    length: Annotated[int, typer.Option(min=1, help="Virtual tokens of a prompt.")] = 20,
    pattern: Annotated[str, typer.Option(help="Puts labelled text to the model.")] = "{text}\nLabel: {blank}",
    few: Annotated[int | None, typer.Option(min=1, help="Learn from so many labelled examples only.")] = None,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    chat: Annotated[
        bool, typer.Option("--chat", help="Put prompts and completions into the model's chat template.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of what is new in the model and of the order of data.")] = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the last checkpoint in --out.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Teach a pretrained model and keep what it learned as an adapter, or as a whole model.

    DATA is a text, or a table with text, with prompt and completion, with text and label, or with messages.
    Without it the source of Python's standard library is learned, and by pet which of its packages a
    docstring comes from.

    Examples:
      nonet finetune smollm2 src/ --out runs/lora
      nonet finetune runs/model answers.jsonl --method prefix
      nonet finetune smollm2 chats.jsonl --steps 400
      nonet finetune smollm2 topics.csv --method pet --few 50
    """
    from nonet.data.text import typed
    from nonet.hub import expanded
    from nonet.training.finetune import Tuning
    from nonet.training.fit import steps_of
    from nonet.training.teaching import finetune_model

    tuning = Tuning(
        model=model,
        source=data,
        method=method,
        steps=steps_of(steps, tokens, batch, window, 200),
        window=window,
        batch=batch,
        learning_rate=learning_rate,
        rank=rank,
        length=length,
        pattern=typed(pattern, "--pattern"),
        few=few,
        dtype=dtype,
        seed=seed,
        chat=chat,
    )
    raise typer.Exit(finetune_model(tuning, expanded(out), resume=resume, as_json=as_json))
