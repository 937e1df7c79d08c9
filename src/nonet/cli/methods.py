"""``nonet methods``: what can fill each slot."""

from __future__ import annotations

from typing import Annotated

import typer


def methods(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List what can fill each slot of the model, by the names that a configuration uses."""
    from nonet.registry import SLOTS, method_of, parts
    from nonet.registry import methods as all_methods

    if as_json:
        import json
        from dataclasses import asdict

        fillers = {
            slot: [{**asdict(p), "method": m.name if (m := method_of(p)) else None} for p in parts(slot)]
            for slot in SLOTS
        }
        records = [asdict(m) for m in all_methods()]
        typer.echo(
            json.dumps({"slots": SLOTS, "parts": fillers, "methods": records}, indent=2, allow_nan=False)
        )
        return

    from rich.table import Table

    from nonet.screen import console

    people = console()
    for slot, question in SLOTS.items():
        if not parts(slot):
            continue
        table = Table("name", "letter", "title", "role", "implementations", title=f"{slot}: {question}")
        for part in parts(slot):
            method = method_of(part)
            ops = [method.op(name) for name in part.ops] if method else []
            names = dict.fromkeys(i.name for op in ops for i in op.implementations)
            table.add_row(part.name, part.letter, part.title, part.role, ", ".join(names))
        people.print(table)
