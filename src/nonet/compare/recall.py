"""A cell of the mixer slot: small models that learn to find again what is in their context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from nonet.compare.cell import Report
from nonet.compare.cost import Step
from nonet.compare.language import config_of, implementations
from nonet.compare.language import probe as probe  # a step of the same model
from nonet.compare.learn import learn
from nonet.compare.plan import Cell
from nonet.compare.scale import recall_tokens
from nonet.data import TaskDataset, accuracy, make_task
from nonet.model import NonetForCausalLM

# Sizes of the synthetic tasks, and among how many answers a guess would choose.
TASK_SIZES: dict[str, tuple[dict[str, int], int]] = {
    "selective_copying": ({"vocab_size": 16, "data": 8}, 14),
    "induction_heads": ({"vocab_size": 16}, 15),
    "associative_recall": ({"vocab_size": 32, "pairs": 4}, 16),
    "duplication": ({"vocab_size": 16}, 15),
}


def run(cell: Cell, report: Report) -> dict[str, Any]:
    """Returns the accuracy on every task."""
    work = cell.work
    tasks = []
    for number, name in enumerate(work.tasks):

        def tell(share: float, number: int = number, name: str = name) -> None:
            report((number + share) / len(work.tasks), name)

        tasks.append(_learn(cell, name, tell))
    return {
        "parameters": cell.parameters,
        "implementations": implementations(config_of(cell), work.device),
        "tasks": tasks,
    }


def seconds(cell: Cell, step: Step) -> float:
    """Returns the seconds that all tasks will take."""
    work = cell.work
    return step.seconds / (work.batch * work.window) * recall_tokens(work)


def _learn(cell: Cell, name: str, tell: Callable[[float], None]) -> dict[str, Any]:
    """Trains a new model on a synthetic task and scores it on sequences that it has not seen."""
    work, config = cell.work, config_of(cell)
    task = make_task(name, work.task_length, seed=cell.seed, **TASK_SIZES[name][0])
    settings = {"vocab_size": task.vocab_size, "max_position_embeddings": max(16, 2 * work.task_length)}
    model = NonetForCausalLM(type(config)(**{**config.to_dict(), **settings})).to(work.device)
    steps, batch = work.task_steps, 4 * work.batch
    items = TaskDataset(task, steps * batch)
    learned = learn(model, items, cell, 10, lambda step, _: tell(step / steps), batch)
    return {
        "task": name,
        "length": work.task_length,
        "accuracy": _accuracy(model, task),
        "chance": 1 / TASK_SIZES[name][1],
        "tokens": steps * batch * work.task_length,
        "seconds": learned.seconds,
    }


@torch.no_grad()
def _accuracy(model: Any, task: Any) -> float:
    fresh = task.batch(256, split="test")
    parts = [model(input_ids=ids.to(model.device)).logits.cpu() for ids in fresh["input_ids"].split(32)]
    return accuracy(torch.cat(parts), fresh["labels"])
