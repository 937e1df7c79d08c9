"""``nonet compare``: which method serves this text on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer


def compare(
    text: Annotated[str | None, typer.Argument(help="A file, a folder or a dataset on disk.")] = None,
    slots: Annotated[str | None, typer.Option(help="mixer,position,linear; or adapter,pairing.")] = None,
    methods: Annotated[str | None, typer.Option(help="Only these, by name, separated by commas.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for everything: 90s, 10m, 2h.")] = None,
    tokens: Annotated[int | None, typer.Option(help="Training tokens a model, in place of --budget.")] = None,
    seeds: Annotated[
        int | None, typer.Option(help="Trainings of each model; several give an interval.")
    ] = None,
    size: Annotated[str | None, typer.Option(help="tiny, small or base.")] = None,
    lengths: Annotated[str | None, typer.Option(help="Lengths to time, such as 256,1024,4096.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="bytes, or a Transformers tokenizer.")] = None,
    model: Annotated[
        str | None, typer.Option(help="For adapter,pairing: smollm2, a directory or owner/name.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for plan, rows and report.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few minutes on two cores.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the comparison in --out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and its cost, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Compare methods slot by slot on a text of yours, or on Python's standard library.

    Mixers, positions and linears are compared in small models that are made anew, adapters and pairings
    around a pretrained one.

    Examples:
      nonet compare --quick
      nonet compare book.txt --slots mixer --budget 10m
      nonet compare notes/ --slots adapter --model smollm2 --quick
      nonet compare src/ --methods flash,mamba --seeds 3 --out runs/mine
      nonet compare --resume --out runs/mine
    """
    # Read when torch is imported. Threads that spin while they wait take the core from the thread that they
    # wait for: on a busy machine a step then takes 5 s instead of 0.1.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    from nonet.compare.asked import Asked
    from nonet.compare.command import execute

    asked: dict[str, Any] = {
        "text": text,
        "slots": _names("--slots", slots),
        "methods": _names("--methods", methods),
        "budget": budget,
        "tokens": tokens,
        "seeds": seeds,
        "size": size,
        "lengths": _numbers("--lengths", lengths),
        "tokenizer": tokenizer,
        "model": model,
        "quick": quick,
    }
    if resume:
        given = [f"--{k}" if k != "text" else "TEXT" for k, v in asked.items() if v not in (None, False)]
        if given:
            raise typer.BadParameter(f"--resume continues a stored plan; drop {', '.join(given)}")
        if out is None:
            raise typer.BadParameter("--resume needs --out, the folder of the comparison to continue")
    raise typer.Exit(execute(Asked(**asked), out, resume=resume, dry_run=dry_run, as_json=as_json))


def _names(option: str, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if not names:
        raise typer.BadParameter(f"{option} takes names separated by commas; got {value!r}")
    return names


def _numbers(option: str, value: str | None) -> tuple[int, ...] | None:
    try:
        return None if value is None else tuple(sorted({int(n) for n in value.split(",")}))
    except ValueError:
        raise typer.BadParameter(f"{option} takes whole numbers separated by commas; got {value!r}") from None
