"""A cell of the mixer, position and linear slots: a language model made anew, trained and measured."""

from __future__ import annotations

from typing import Any

import torch

from nonet.compare.cell import Report
from nonet.compare.cost import Step
from nonet.compare.learn import read_text, teach
from nonet.compare.measure import cost_of_step, decode, growth
from nonet.compare.plan import Cell, Work, model_config
from nonet.data import EncodedCorpus, validation_windows
from nonet.model import NonetConfig, NonetForCausalLM
from nonet.training import nats_by_place

PLACE_TOKENS = 49_152  # scored for the loss by place


def run(cell: Cell, report: Report) -> dict[str, Any]:
    """Returns what was found: loss, speed, memory, growth with length, decoding, loss by place."""
    work = cell.work
    text = read_text(work, work.tokenizer)
    config = config_of(cell)
    model = NonetForCausalLM(config).to(work.device)
    learned = teach(model, text, cell, report)
    report(0.82, "places beyond the training length")
    places = _places(model, text, work)
    report(0.88, "time and memory against length")
    return {
        "parameters": model.num_parameters(),
        "implementations": implementations(config, work.device),
        **learned,
        "growth": growth(model, work.lengths, work.repeats, cell.seed, patience=4.0),
        "decode": decode(model, work.contexts, work.repeats, cell.seed),
        "places": places,
    }


def probe(cell: Cell) -> Step:
    """Measures one training step; memory counts the parameters four times (weight, gradient, two moments)."""
    work = cell.work
    torch.set_num_threads(work.threads)
    model = NonetForCausalLM(config_of(cell)).to(work.device)
    seconds, saved = cost_of_step(model, work.batch, work.window, use_cache=False)
    return Step(seconds, 16 * model.num_parameters() + saved, model.num_parameters())


def seconds(cell: Cell, step: Step) -> float:
    """Returns the seconds that training and measuring will take."""
    work = cell.work
    passes = sum(work.lengths) * 1.4 * (work.repeats + 2)
    scored = (work.evaluations + 1) * work.validation_windows * work.window / 3
    return step.seconds / (work.batch * work.window) * (work.tokens + passes + scored)


def config_of(cell: Cell) -> NonetConfig:
    """Returns the configuration of a cell's model."""
    work, width = cell.work, cell.intermediate_size
    return model_config(cell.combo, work.size, work.vocab_size, work.window, intermediate_size=width)


def implementations(config: NonetConfig, device: str) -> dict[str, dict[str, str]]:
    """Returns for every op of the model which implementation runs, and why."""
    chosen = config.implementations(device, "float32")
    return {op: {"name": name, "reason": reason} for op, (name, reason) in chosen.items()}


def _places(model: Any, text: EncodedCorpus, work: Work) -> list[dict[str, Any]]:
    """Bits per byte by place in the context, in bins of a quarter of the training length."""

    def nats(length: int) -> Any:
        count = max(4, PLACE_TOKENS // length)
        return nats_by_place(model, validation_windows(text.validation, length, count, text.lead), batch=4)

    try:
        by_place = nats(work.places)
    except ValueError:  # a table of positions, or the text, ends before
        by_place = nats(work.window)
    width = work.window // 4
    return [
        {
            "from": a,
            "to": a + width,
            "bits_per_byte": text.bits_per_byte(by_place[a : a + width].mean().item()),
        }
        for a in range(0, len(by_place), width)
    ]
