"""``nonet bench``: how fast the kernels are here, beside other people's code and this machine's limits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def bench(
    kernels: Annotated[
        list[str] | None,
        typer.Argument(
            help="selective_scan, causal_conv1d, hgrn_scan, mamba, lora, linear_rows; all by default."
        ),
    ] = None,
    peers: Annotated[bool, typer.Option(help="Time other people's code beside ours.")] = True,
    threads: Annotated[str | None, typer.Option(help="Numbers of threads, such as 4,1.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder that rows are added to.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Tiny sizes, to see that all works; the times mean nothing.")
    ] = False,
    keep_memory: Annotated[
        bool, typer.Option("--keep-memory", help="Keep memory that was freed, as glibc by itself does not.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Time the kernels against other people's code and this machine's limits, after checking them.

    Examples:
      nonet bench
      nonet bench selective_scan hgrn_scan --threads 1
      nonet bench --quick --json
    """
    from nonet.bench.command import execute
    from nonet.hub import expanded

    code = execute(
        kernels or (),
        None if out is None else expanded(out),
        threads=_numbers(threads),
        peers=peers,
        quick=quick,
        keep_memory=keep_memory,
        as_json=as_json,
    )
    raise typer.Exit(code)


def _numbers(value: str | None) -> tuple[int, ...]:
    try:
        found = tuple(int(n) for n in (value or "").split(",") if value)
    except ValueError:
        found = (0,)
    if any(n < 1 for n in found):
        raise typer.BadParameter(f"--threads takes numbers from 1 on, separated by commas; got {value!r}")
    return found
