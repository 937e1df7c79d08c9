"""``nonet doctor``: what this machine offers, and which implementations it will run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from nonet.extras import pip_install

# What decides how fast a processor multiplies; the names are those of /proc/cpuinfo.
_FEATURES = ("avx2", "fma", "f16c", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what this machine offers, what is missing, and which implementation every op will run."""
    found = examine()
    if as_json:
        import json

        typer.echo(json.dumps(found, indent=2, allow_nan=False))
        return

    from rich.table import Table

    from nonet.screen import console

    people = console()
    facts = Table(show_header=False, box=None)
    for name, value in found["machine"].items():
        facts.add_row(name.replace("_", " "), _plain(value))
    for name, value in found["library"].items():
        facts.add_row(f"library {name.replace('_', ' ')}", _plain(value))
    for name, packages in found["extras"].items():
        missing = [package for package, version in packages.items() if version is None]
        how = f"missing {', '.join(missing)}; {pip_install(name)}" if missing else "installed"
        facts.add_row(f"extra {name}", how)
    people.print(facts)
    table = Table("op", "device", "runs", "why", title="What impl='auto' chooses for float32")
    for choice in found["choices"]:
        table.add_row(choice["op"], choice["device"], _plain(choice["implementation"]), choice["reason"])
    people.print(table)


def examine() -> dict[str, Any]:
    """Returns the report as plain values: ``machine``, ``library``, ``extras`` and ``choices``."""
    from importlib import metadata

    import torch

    from nonet.compare.provenance import provenance
    from nonet.data.tokens import cache_folder
    from nonet.native import NativeError
    from nonet.registry import methods
    from nonet.select import absent, select

    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    origin = provenance(devices[-1], torch.get_num_threads())
    machine = {
        **{name: origin[name] for name in ("nonet", "commit", "python", "torch", "transformers")},
        **{name: metadata.version(name) for name in ("accelerate", "safetensors", "tokenizers", "numpy")},
        **{name: origin[name] for name in ("platform", "cpu")},
        "cpu_features": _cpu_features(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        **{name: origin[name] for name in ("cores", "threads", "gpu")},
        "cache_folder": str(cache_folder(None)),
    }
    choices = []
    for op in (op for method in methods() for op in method.ops):
        for device in devices:
            try:
                name, reason = select(op, device, "float32", missing=absent(op, device))
            except NativeError as error:
                name, reason = None, str(error)
            choices.append({"op": op.name, "device": device, "implementation": name, "reason": reason})
    return {"machine": machine, "library": _library(), "extras": _extras(), "choices": choices}


def _library() -> dict[str, Any]:
    """Returns what there is to know of the C library, or why it is ``absent`` or ``broken``."""
    from nonet import native

    try:
        why = native.absence()
        if why is not None:
            return {"absent": why}
        library = native.library()
    except native.NativeError as error:
        return {"broken": str(error)}
    return {
        "file": str(library.path),
        "ABI": native.ABI,
        "instruction_set": library.isa,
        "instruction_sets": list(library.isas()),
        "threads": "those of torch" if library.pooled else "one, as this torch has no torch_parallel_for",
    }


def _extras() -> dict[str, dict[str, str | None]]:
    """Returns, for every extra that users install, its packages and their versions, None when missing."""
    from importlib import metadata

    from packaging.requirements import Requirement

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    asked = [Requirement(text) for text in metadata.requires("nonet") or ()]
    names = [name for name in metadata.metadata("nonet").get_all("Provides-Extra") or () if name != "dev"]
    return {
        extra: {r.name: version(r.name) for r in asked if r.marker and r.marker.evaluate({"extra": extra})}
        for extra in names
    }


def _cpu_features() -> list[str]:
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [name for name in _FEATURES if name in words]


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "-"
    return "-" if value is None else str(value)
