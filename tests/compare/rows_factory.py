"""Rows as a comparison on a small machine gives them, made up but of the right shape and size."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LENGTHS = (128, 256, 512, 1024, 2048)
CONTEXTS = (256, 1024, 2048)
WINDOW = 256
TOKENS = 524_288
BASELINE = {"mixer": "flash", "position": "rope", "linear": "dense"}
SLOTS = {
    "mixer": ("flash", "mlgru", "mamba", "reformer", "linformer"),
    "position": ("rope", "alibi", "sinusoidal", "learned", "none"),
    "linear": ("ternary", "dense"),
}
AROUND = {
    "adapter": ("full", "prompt", "prefix", "ptuning", "lora", "untuned"),
    "pairing": ("alone", "tandem", "speculative", "assisted"),
}
TASKS = {"associative_recall": 1 / 16, "induction_heads": 1 / 16, "selective_copying": 1 / 8}
ENVIRONMENT = {
    "commit": "3f0c9a41d2", "dirty": False, "nonet": "0.1.0", "python": "3.11.7", "torch": "2.13.0",
    "transformers": "5.23.0", "platform": "Linux-6.1-x86_64-with-glibc2.36", "cpu": "AMD EPYC 7B13",
    "gpu": None, "cores": 2, "threads": 2, "device": "cpu", "dtype": "float32", "deterministic": True,
}  # fmt: skip

# Final bits per byte; seconds for the whole training; seconds a token: constant, linear, quadratic in the
# length; bytes of state: constant, a token; loss beyond the window, relative; recall.
_COSTS = {
    "flash": (2.412, 61.0, 4e-3, 1.6e-5, 3.2e-8, 0, 1024, 0.98),
    "mlgru": (2.594, 42.0, 5e-3, 1.5e-5, 0.0, 8192, 0, 0.31),
    "mamba": (2.437, 118.0, 6e-3, 5.5e-5, 0.0, 73_728, 0, 0.66),
    "reformer": (2.521, 190.0, 9e-3, 9.0e-5, 1.0e-9, 4096, 1024, 0.84),
    "linformer": (2.688, 83.0, 5e-3, 3.0e-5, 1.0e-9, 65_536, 256, 0.22),
    "rope": (0.0, 1.0, 0, 0, 0, 0, 0, 1.28),
    "alibi": (0.012, 1.12, 0, 0, 0, 0, 0, 0.99),
    "sinusoidal": (0.094, 0.97, 0, 0, 0, 0, 0, 1.41),
    "learned": (0.071, 0.97, 0, 0, 0, 0, 0, math.nan),
    "none": (0.213, 0.96, 0, 0, 0, 0, 0, 1.33),
    "ternary": (0.118, 1.34, 0, 0, 0, 0, 0, 1.0),
    "dense": (0.0, 1.0, 0, 0, 0, 0, 0, 1.0),
}
# Final bits per byte; seconds for the whole training; trained parameters; bytes at the peak; seconds a token.
_TUNED = {
    "full": (0.921, 330.0, 134_515_008, 2.3e9, 0.041),
    "prompt": (0.987, 190.0, 11_520, 0.9e9, 0.043),
    "prefix": (1.012, 185.0, 230_400, 0.9e9, 0.044),
    "ptuning": (0.996, 195.0, 997_056, 0.9e9, 0.043),
    "lora": (0.918, 240.0, 2_442_240, 1.1e9, 0.058),
    "untuned": (1.034, 0.0, 0, 0, 0.041),
}
_WEIGHTS = 134_515_008
_BLOCKS = (2, 3, 4, 6, 8)
# Acceptance of the first place in a block; share of it that the next place keeps; cost of a drafted token,
# the primary's being 1; texts of four that come out the same.
_WRITING = {
    "tandem": (0.74, 0.96, 0.13, 4),
    "speculative": (0.61, 0.97, 0.12, 4),
    "assisted": (0.61, 0.97, 0.33, 4),
}


def make_plan(
    seeds: tuple[int, ...] = (0, 1, 2), slots: tuple[str, ...] = tuple(SLOTS), **changed: Any
) -> dict[str, Any]:
    around = set(slots) <= set(AROUND)
    cells = [cell for seed in seeds for cell in (_cells_around if around else _cells)(seed, slots)]
    pretrained = {"layers": 3, "texts": 4, "new": 64}
    return {
        "format": 1, "command": "nonet compare --seeds 3", "created": "2026-11-22T18:00:00+00:00",
        "corpus": {
            "name": "Python standard library", "source": None, "fingerprint": "sha256:" + "9c1e" * 16,
            "tokenizer": "bytes", "bytes": {"train": 9_412_310, "validation": 524_288, "test": 498_112},
            "tokens": {"train": 9_412_310, "validation": 524_288, "test": 498_112},
        },
        "size": "" if around else "tiny", "model": "smollm2" if around else "",
        "work": pretrained if around else {}, "window": WINDOW, "tokens": TOKENS,
        "seeds": list(seeds), "lengths": list(LENGTHS), "slots": list(slots), "cells": cells,
        "estimate": {"seconds": 2400.0, "bytes": 900_000_000},
        "environment": ENVIRONMENT, **changed,
    }  # fmt: skip


def make_rows(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """One finished row for every cell of the plan."""
    return [make_row(cell) for cell in plan["cells"]]


def make_row(cell: dict[str, Any], **changed: Any) -> dict[str, Any]:
    rng = random.Random(cell["id"])
    measured = _MEASURED[cell["kind"]](cell, rng)
    return {
        "format": 1, "cell": cell, "state": "done", "error": None, "started": "2026-11-22T18:00:10+00:00",
        "seconds": 71.2, "learning_rate": cell["learning_rate"], "parameters": cell["parameters"],
        "implementations": {"flash_attention": {"name": "torch", "reason": "preferred, and able"}},
        **measured, "provenance": ENVIRONMENT, **changed,
    }  # fmt: skip


def fail(cell: dict[str, Any], error: str, state: str = "failed") -> dict[str, Any]:
    return {"format": 1, "cell": cell, "state": state, "error": error}


def find(rows: list[dict[str, Any]], slot: str, name: str, kind: str = "") -> list[dict[str, Any]]:
    """The rows of an entry of a slot; of a language model, or else of the slot's own kind."""
    kind = kind or (slot if slot in AROUND else "language")
    return [
        row for row in rows
        if slot in row["cell"]["slots"] and row["cell"][slot] == name and row["cell"]["kind"] == kind
    ]  # fmt: skip


def set_ratio(rows: list[dict[str, Any]], name: str, ratio: float, identical: int = 4) -> None:
    """Lets a pairing write at this speed with blocks of 4, and a tenth slower with any others."""
    for row in find(rows, "pairing", name):
        for block in row["blocks"]:
            if block["block"]:
                fast = ratio * (1.0 if block["block"] == 4 else 0.9)
                block["ratio"] = {"median": fast, "low": fast - 0.04, "high": fast + 0.04}
                block["identical"] = identical


def set_quality(rows: list[dict[str, Any]], slot: str, name: str, values: Sequence[float]) -> None:
    """Gives the runs of an entry these losses at the end, and straight curves that lead there."""
    for row, value in zip(find(rows, slot, name), values, strict=True):
        row["validation"]["bits_per_byte"] = value
        for step in row["train"]["curve"]:
            step["bits_per_byte"] = value + 1 - step["tokens"] / TOKENS


def set_seconds(rows: list[dict[str, Any]], slot: str, name: str, seconds: float) -> None:
    """Gives the runs of an entry this time of training."""
    for row in find(rows, slot, name):
        row["train"] |= {"seconds": seconds, "tokens_per_second": TOKENS / seconds}
        for step in row["train"]["curve"]:
            step["seconds"] = seconds * step["tokens"] / TOKENS


def write(directory: Path, plan: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    """A comparison's folder."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "plan.json").write_text(json.dumps(plan))
    (directory / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def _cells(seed: int, slots: tuple[str, ...]) -> list[dict[str, Any]]:
    cells: dict[str, dict[str, Any]] = {}
    for slot in slots:
        for name in SLOTS[slot]:
            for kind in ("language", "recall") if slot == "mixer" else ("language",):
                filled = {**BASELINE, slot: name}
                said = {"kind": kind, **filled, "seed": seed}
                key = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
                size = 412_352 + 8 * list(_COSTS).index(name) * (name != BASELINE[slot])
                cell = {"id": key, **said, "slots": [], "parameters": size, "learning_rate": 0.003}
                cells.setdefault(key, cell)["slots"].append(slot)
    return sorted(cells.values(), key=lambda cell: cell["kind"])


def _cells_around(seed: int, slots: tuple[str, ...]) -> list[dict[str, Any]]:
    cells = []
    empty = dict.fromkeys((*BASELINE, *AROUND), "")
    for slot in slots:
        for name in AROUND[slot]:
            said = {"kind": slot, **empty, slot: name, "seed": seed}
            key = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]
            rate = 0.0 if name in ("untuned", "alone") else 5e-4
            cells.append({"id": key, **said, "slots": [slot], "parameters": 0, "learning_rate": rate})
    return cells


def _tuned(cell: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    final, total, trained, peak, token = _TUNED[cell["adapter"]]
    start = 1.034
    final += rng.gauss(0, 0.001) * (trained > 0)
    steps = range(5 if trained else 1)
    seconds = total * rng.gauss(1, 0.02)
    spread = {"low": token * 0.98, "high": token * 1.03, "runs": 9}
    return {
        "parameters": _WEIGHTS + trained * (cell["adapter"] != "full"),
        "trained_parameters": trained,
        "settings": {"rank": 8, "variants": []} if cell["adapter"] == "lora" else {},
        "train": {
            "tokens": TOKENS if trained else 0, "seconds": seconds,
            "tokens_per_second": TOKENS / seconds if trained else None, "first_bits_per_byte": start,
            "curve": [
                {"tokens": TOKENS * i // 4, "seconds": seconds * i / 4,
                 "bits_per_byte": final + (start - final) * 0.3 ** i - (start - final) * 0.3 ** 4 * (i > 0)}
                for i in steps
            ],
        },
        "validation": {"bits_per_byte": final, "tokens": 8160, "bytes": 30_000},
        "peak_bytes": int(peak) or None, "optimizer_bytes": 8 * trained, "file_bytes": 4 * trained,
        "decode": [
            {"context": 256, "step": {"median": token, **spread}, "cache_bytes": 23_592_960},
        ],
    }  # fmt: skip


def _written(cell: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    alone = {
        "block": 0, "ratio": {"median": 1.0, "low": 1.0, "high": 1.0}, "tokens_per_second": 24.3,
        "identical": 4, "texts": 4, "acceptance": None, "accepted_at": [], "tokens_per_round": 1.0,
    }  # fmt: skip
    if cell["pairing"] == "alone":
        return {"parameters": _WEIGHTS, "trained_parameters": 0, "settings": {}, "blocks": [alone]}
    first, kept, cost, same = _WRITING[cell["pairing"]]
    blocks = [alone]
    for n in _BLOCKS:
        at = [first * kept**i * rng.gauss(1, 0.01) for i in range(n)]
        reached = [math.prod(at[:i]) for i in range(n + 1)]
        a_pass = sum(reached)
        ratio = a_pass / (1 + cost * n)
        blocks.append({
            "block": n, "ratio": {"median": ratio, "low": ratio * 0.93, "high": ratio * 1.06},
            "tokens_per_second": 24.3 * ratio, "identical": same, "texts": 4,
            "acceptance": sum(reached[1:]) / n, "accepted_at": at, "tokens_per_round": a_pass,
        })  # fmt: skip
    return {
        "parameters": _WEIGHTS + 38_933_568, "trained_parameters": 38_933_568,
        "settings": {"layers": 3, "loss": "distil"}, "blocks": blocks,
        "train": {"tokens": TOKENS, "seconds": 210.0, "tokens_per_second": TOKENS / 210.0, "losses": []},
        "peak_bytes": 1_400_000_000, "optimizer_bytes": 8 * 38_933_568,
    }  # fmt: skip


def _language(cell: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    final, total, fixed, linear, square, state, a_token, _ = _COSTS[cell["mixer"]]
    for slot in ("position", "linear"):
        final, total = final + _COSTS[cell[slot]][0], total * _COSTS[cell[slot]][1]
    final += rng.gauss(0, 0.006)
    total *= rng.gauss(1, 0.02)
    cut = 10 + total / 40  # slow learners bend later

    def bits(share: float) -> float:
        return final + (8.02 - final) / (1 + cut * share) ** 1.35 - (8.02 - final) / (1 + cut) ** 1.35

    def timing(seconds: float) -> dict[str, float]:
        noisy = seconds * rng.gauss(1, 0.015)
        return {"median": noisy, "low": noisy * 0.97, "high": noisy * 1.05, "runs": 5}

    reach = LENGTHS if cell["position"] != "learned" else [n for n in LENGTHS if n <= WINDOW]
    costs = {n: fixed + linear * n + square * n * n for n in LENGTHS}
    a_place = 13_000 if cell["mixer"] != "flash" else 9_000
    heap = {n: 3_000_000 + a_place * n + (6 * n * n if cell["mixer"] == "flash" else 0) for n in LENGTHS}
    return {
        "train": {
            "tokens": TOKENS, "seconds": total, "tokens_per_second": TOKENS / total,
            "first_bits_per_byte": 8.02,
            "curve": [
                {"tokens": TOKENS * i // 8, "seconds": total * i / 8, "bits_per_byte": bits(i / 8)}
                for i in range(9)
            ],
        },
        "validation": {"bits_per_byte": bits(1.0), "tokens": 65_280, "bytes": 65_280},
        "peak_bytes": int((160e6 + total * 1.2e6) * rng.gauss(1, 0.01)),
        "growth": [
            {
                "length": n,
                "forward": timing(costs[n]) if n in reach else None,
                "backward": timing(2.9 * costs[n]) if n in reach else None,
                "forward_bytes": heap[n] if n in reach else None,
                "backward_bytes": 4 * heap[n] if n in reach else None,
            }
            for n in LENGTHS
        ],
        "decode": [
            {"context": n, "step": timing(2.1e-3 + fixed / 8 + (a_token > 0) * 9e-7 * n),
             "cache_bytes": 4 * (state + a_token * n)} if n in reach else
            {"context": n, "step": None, "cache_bytes": None}
            for n in CONTEXTS
        ],
        "places": _places(cell, final),
    }  # fmt: skip


def _places(cell: dict[str, Any], final: float) -> list[dict[str, float]]:
    worse = _COSTS[cell["position"]][-1] if cell["mixer"] in ("flash", "reformer") else 1.01
    end = WINDOW if math.isnan(worse) else 4 * WINDOW
    width = WINDOW // 4
    return [
        {
            "from": a, "to": a + width,
            "bits_per_byte": final * (1 + 0.6 / (1 + (a + 8) / 18))
            * (1.0 if a < WINDOW else 1 + (worse - 1) * min(1, (a - WINDOW + width) / (2 * WINDOW))),
        }
        for a in range(0, end, width)
    ]  # fmt: skip


def _tasks(cell: dict[str, Any], rng: random.Random) -> list[dict[str, Any]]:
    skill = _COSTS[cell["mixer"]][-1]
    return [
        {
            "task": task, "length": length, "chance": chance, "tokens": 400_000, "seconds": 6.1,
            "accuracy": min(1.0, max(chance, skill * (1 - 0.12 * i * (1 - skill)) + rng.gauss(0, 0.01))),
        }
        for task, chance in TASKS.items()
        for i, length in enumerate((64, 128, 256))
    ]  # fmt: skip


_MEASURED: dict[str, Callable[[dict[str, Any], random.Random], dict[str, Any]]] = {
    "language": _language,
    "recall": lambda cell, rng: {"tasks": _tasks(cell, rng)},
    "adapter": _tuned,
    "pairing": _written,
}
