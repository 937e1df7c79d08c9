"""A cell of the pairing slot: a small model learns to draft for a pretrained one, and both write together."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from nonet.compare.cell import Report
from nonet.compare.cost import Step
from nonet.compare.learn import check_loss, implementations, learn, read_text
from nonet.compare.measure import cost_of_step, decode, least
from nonet.compare.plan import Cell
from nonet.data import EncodedCorpus, training_windows, validation_windows
from nonet.hf import load_pretrained
from nonet.tandem import METHOD, Tandem, speculative_generate, stream_weights
from nonet.tandem.shortlist import Shortlist
from nonet.training.pairing import Pairing, make_shortlist, make_tandem, tandem_loss
from nonet.training.speed import Speed, Way, make_prompts, speeds, write_alone, write_assisted


@dataclass(frozen=True)
class Kind:
    """How a secondary is trained, and how both write then.

    Attributes:
        reads: the secondary reads the primary's states, as in a tandem; else it is a model of its own.
        settings: fields of :class:`Pairing` that have a meaning for it.
        write: of both models, tokens to draft from, new tokens and the length of a block: a way to write.
    """

    reads: bool
    settings: tuple[str, ...]
    write: Callable[[Tandem, Shortlist, int, int], Way]


def _tandem(pair: Tandem, few: Shortlist, new: int, block: int) -> Way:
    return functools.partial(pair.generate, max_new_tokens=new, block=block, shortlist=few, return_stats=True)


def _speculative(pair: Tandem, few: Shortlist, new: int, block: int) -> Way:
    options = {"max_new_tokens": new, "block": block, "shortlist": few, "return_stats": True}
    return functools.partial(speculative_generate, pair.primary, pair.secondary, **options)


def _assisted(pair: Tandem, few: Shortlist, new: int, block: int) -> Way:
    return functools.partial(write_assisted, pair.primary, pair.secondary, new=new, block=block)


KINDS = {
    "tandem": Kind(True, ("layers", "loss", "block", "reading", "shortlist"), _tandem),
    "speculative": Kind(False, ("layers", "loss", "shortlist"), _speculative),
    "assisted": Kind(False, ("layers", "loss"), _assisted),
}  # the primary alone has no secondary


def run(cell: Cell, report: Report) -> dict[str, Any]:
    """Returns what was found: the secondary's loss, and for every block length the speed of writing."""
    work = cell.work
    primary, tokenizer = load_pretrained(work.model, torch.float32)
    primary.to(work.device)
    text = read_text(work, tokenizer)
    ways: dict[str, Way] = {"0": functools.partial(write_alone, primary, new=work.new)}
    found: dict[str, Any] = {"parameters": primary.num_parameters(), "trained_parameters": 0, "settings": {}}
    if cell.pairing in KINDS:
        pair, pairing = pair_of(cell, primary)
        found = {
            "parameters": found["parameters"] + pair.secondary.num_parameters(),
            "trained_parameters": _trained(pair),
            "settings": {name: getattr(pairing, name) for name in KINDS[cell.pairing].settings},
            **_train(cell, pair, text, report),
        }
        few = make_shortlist(pair, text, pairing.shortlist)
        write = KINDS[cell.pairing].write
        stream_weights(pair.secondary)
        ways |= {str(block): write(pair, few, work.new, block) for block in work.blocks}
    report(0.75, "writing")
    stream_weights(primary)  # for every way to write, the primary alone among them
    measured = speeds(ways, make_prompts(text, work.texts, primary.device))
    blocks = [_row(int(block), speed) for block, speed in measured.items()]
    ops = implementations([METHOD.op("linear_rows")], work.device)
    return {**found, "implementations": ops, "blocks": blocks}


def probe(cell: Cell) -> Step:
    """Measures a training step, the loss without a gradient, and one more token of the primary."""
    work = cell.work
    torch.set_num_threads(work.threads)
    primary, _ = load_pretrained(work.model, torch.float32)
    stream_weights(primary.to(work.device))
    [one] = decode(primary, work.contexts[:1], 1, cell.seed)
    token = one["step"]["median"]
    size = 4 * primary.num_parameters()
    if cell.pairing not in KINDS:
        return Step(0.0, size, 0, token=token)
    pair, _ = pair_of(cell, primary)
    took, saved = cost_of_step(pair, work.batch, work.window)
    ids = torch.zeros(work.batch, work.window, dtype=torch.long, device=primary.device)
    with torch.no_grad():
        forward = least(lambda: pair(input_ids=ids, labels=ids), 2, primary.device)
    trained = _trained(pair)
    return Step(took, size + 16 * trained + saved, trained, forward, token)


def seconds(cell: Cell, step: Step) -> float:
    """Returns the seconds that training and writing will take, were no block faster than no draft."""
    work = cell.work
    drafts = len(work.blocks) if step.trained else 0
    tokens = (work.texts + 1) * (1 + drafts) * work.new
    looks = work.evaluations + 1 if step.trained else 0
    scored = looks * work.validation_windows / work.batch
    steps = work.tokens / (work.batch * work.window)
    return step.seconds * steps + step.forward * scored + step.token * tokens


def pair_of(cell: Cell, primary: Any) -> tuple[Tandem, Pairing]:
    """Returns both models, and how the secondary is trained.

    Within a block a secondary sees its own states only, so with a block as long as the window it is a model
    that reads for itself, trained by the tandem's loss.
    """
    work, reads = cell.work, KINDS[cell.pairing].reads
    options: dict[str, Any] = {} if reads else {"block": work.window}
    pairing = Pairing(
        model=work.model,
        source=work.source,
        layers=work.layers,
        steps=max(1, work.tokens // (work.batch * work.window)),
        window=work.window,
        batch=work.batch,
        learning_rate=cell.learning_rate,
        seed=cell.seed,
        **options,
    )
    pair = make_tandem(primary, pairing)
    pair.projections.requires_grad_(reads)
    return pair, pairing


def _trained(pair: Tandem) -> int:
    return sum(p.numel() for p in pair.parameters() if p.requires_grad)


def _train(cell: Cell, pair: Tandem, text: EncodedCorpus, report: Report) -> dict[str, Any]:
    work = cell.work
    per_step = work.batch * work.window
    steps = max(1, work.tokens // per_step)
    scored = validation_windows(text.validation, work.window, work.validation_windows, text.lead)
    losses: list[dict[str, float]] = []

    def evaluate(step: int, seconds: float) -> None:
        nats = tandem_loss(pair, scored)
        losses.append({"tokens": step * per_step, "seconds": seconds, "nats": nats})
        report(0.7 * step / steps, f"loss {nats:.2f}")

    pair.eval()
    evaluate(0, 0.0)
    windows = training_windows(
        text.train, work.window, seed=cell.seed, count=steps * work.batch, lead=text.lead
    )
    learned = learn(pair, windows, cell, work.evaluations, evaluate)
    check_loss(losses[-1]["nats"])
    return {
        "train": {
            "tokens": steps * per_step,
            "seconds": learned.seconds,
            "least_seconds": learned.least_seconds,
            "tokens_per_second": steps * per_step / learned.seconds,
            "losses": losses,
        },
        "peak_bytes": learned.peak_bytes,
        "optimizer_bytes": learned.optimizer_bytes,
    }


def _row(block: int, speed: Speed) -> dict[str, Any]:
    """Returns the speed with blocks of a length as plain values; 0 is the primary alone."""
    row = asdict(speed)
    ratio = {"median": row.pop("ratio"), "low": row.pop("low"), "high": row.pop("high")}
    return {"block": block, "ratio": ratio, **row, "accepted_at": list(row["accepted_at"])}
