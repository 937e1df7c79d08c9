"""A cell of the adapter slot: a pretrained model is taught a text, in one of the ways there are."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from nonet.compare.cell import Report
from nonet.compare.cost import Step
from nonet.compare.learn import implementations, read_text, teach
from nonet.compare.measure import cost_of_step, decode, least
from nonet.compare.plan import Cell
from nonet.hf import load_pretrained
from nonet.registry import load, method_of, part
from nonet.training.finetune import Tuning, adapt, adapter, keep


def run(cell: Cell, report: Report) -> dict[str, Any]:
    """Returns what was found: loss before and after, speed, memory, size of what is kept, decoding."""
    work = cell.work
    tuning = _tuning(cell)
    model, tokenizer = _made(cell, tuning)
    text = read_text(work, tokenizer)
    learned = teach(model, text, cell, report)
    report(0.9, "time of one more token")
    config = adapter(tuning) if tuning else None
    filled = part("adapter", cell.adapter)
    method = method_of(filled)
    ops = [method.op(name) for name in filled.ops] if method else []
    return {
        "parameters": model.num_parameters(),
        "trained_parameters": model.num_parameters(only_trainable=True),
        "settings": json.loads(json.dumps(asdict(config))) if config else {},
        "implementations": implementations(ops, work.device),
        **learned,
        "file_bytes": _file_bytes(model, tuning) if tuning else 0,
        "decode": decode(model, work.contexts, work.repeats, cell.seed),
    }


def probe(cell: Cell) -> Step:
    """Measures a training step, reading without a gradient, and one more token.

    Memory is the weights, three times more what is trained (gradient, two moments), and what the graph saves.
    """
    work = cell.work
    torch.set_num_threads(work.threads)
    model, _ = _made(cell, _tuning(cell))
    trained = model.num_parameters(only_trainable=True)
    seconds, saved = cost_of_step(model, work.batch, work.window, use_cache=False) if trained else (0.0, 0)
    ids = torch.zeros(work.batch, work.window, dtype=torch.long, device=model.device)
    with torch.no_grad():
        forward = least(lambda: model(input_ids=ids, use_cache=False), 2, model.device)
    [one] = decode(model, work.contexts[:1], 1, cell.seed)
    size = 4 * model.num_parameters() + 12 * trained + saved
    return Step(seconds, size, trained, forward, one["step"]["median"])


def seconds(cell: Cell, step: Step) -> float:
    """Returns the seconds that training and measuring will take."""
    work = cell.work
    looks = work.evaluations + 1 if cell.learning_rate else 1
    scored = looks * work.validation_windows / work.batch
    tokens = len(work.contexts) * (3 * work.repeats + 1)
    steps = work.tokens / (work.batch * work.window)
    return step.seconds * steps + step.forward * scored + step.token * tokens


def _tuning(cell: Cell) -> Tuning | None:
    """Returns the fine-tuning that a cell stands for, as ``nonet finetune`` would do it; None for none."""
    work = cell.work
    if not cell.learning_rate:
        return None
    return Tuning(
        model=work.model,
        source=work.source,
        method=cell.adapter,
        steps=max(1, work.tokens // (work.batch * work.window)),
        window=work.window,
        batch=work.batch,
        learning_rate=cell.learning_rate,
        seed=cell.seed,
    )


def _made(cell: Cell, tuning: Tuning | None) -> tuple[Any, Any]:
    """Returns the model, ready to be trained, and its tokenizer."""
    model, tokenizer = load_pretrained(cell.work.model, torch.float32)
    if tuning is None:
        model = load(part("adapter", cell.adapter).target)(model)
    else:
        model = adapt(model, tokenizer, tuning)
    return model.to(cell.work.device), tokenizer


def _file_bytes(model: Any, tuning: Tuning) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        keep(model, tuning, Path(scratch), {})
        return sum(file.stat().st_size for file in Path(scratch).glob("*.safetensors"))
