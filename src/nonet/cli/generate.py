"""``nonet generate``: continue a prompt with a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def generate(
    model: Annotated[str, typer.Argument(help="smollm2, a model directory, or owner/name on the hub.")],
    prompt: Annotated[
        str | None, typer.Option(help="The text to continue; - reads standard input, as does a pipe.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Ask an instruct model; print its answer.")] = False,
    adapter: Annotated[Path | None, typer.Option(help="The directory of an adapter for the model.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to write.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token each time.")] = 0.8,
    top_p: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="Sample from this share of likelihood.")
    ] = 0.95,
    seed: Annotated[int, typer.Option(help="The same seed writes the same text.")] = 0,
    stream: Annotated[bool, typer.Option(help="Print each token as it comes.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Continue a prompt with a model, printing the text as it is written.

    Examples:
      nonet generate runs/model --prompt "def main("
      nonet generate runs/model --prompt "import" --temperature 0 --json
      nonet generate smollm2 --chat --prompt "What is a monad?"
      nonet generate smollm2 --adapter runs/lora --prompt "def main("
      cat question.txt | nonet generate smollm2 --chat
    """
    from nonet.data.text import given_prompt
    from nonet.generation import Asked, write
    from nonet.hub import expanded

    asked = Asked(given_prompt(prompt), chat, tokens, temperature, top_p, seed, as_json)
    write(model, asked, adapter=None if adapter is None else expanded(adapter), stream=stream)
