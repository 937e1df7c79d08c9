"""What the paper of Linformer claims, as experiments."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from nonet.claim import Claim, Curve, Figure, Finding, Plot, Untestable, judge

if TYPE_CHECKING:
    from nonet.ledger import Lab

_MIB = 2**20
_HIDDEN = 257  # the token that stands where a byte is to be guessed


class _Guesser(nn.Module):
    """An encoder that guesses hidden bytes, as RoBERTa is trained."""

    def __init__(self, lab: Lab, seed: int, length: int, **fields: Any) -> None:
        super().__init__()
        sizes = {"vocab_size": _HIDDEN + 1, "max_position_embeddings": length, "is_causal": False}
        self.encoder = lab.classifier(seed, **sizes, **fields).model

    def forward(self, input_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        hidden = self.encoder(input_ids=input_ids).last_hidden_state
        logits = F.linear(hidden, self.encoder.embed_tokens.weight)
        return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)}


def _collate(seed: int) -> Callable[[list[Any]], dict[str, Tensor]]:
    """Returns what hides three bytes in twenty."""
    random = torch.Generator().manual_seed(seed)

    def hide(items: list[Any]) -> dict[str, Tensor]:
        ids = torch.stack([item["input_ids"] for item in items])
        hidden = torch.rand(ids.shape, generator=random) < 0.15
        return {"input_ids": ids.masked_fill(hidden, _HIDDEN), "labels": ids.masked_fill(~hidden, -100)}

    return hide


def _maps(model: _Guesser, ids: Tensor) -> list[Tensor]:
    """Returns the matrix of attention of each layer, ``(B, H, T, T)``."""
    maps: list[Tensor] = []

    def read(mixer: Any, given: Any) -> None:
        x, context = given[:2]
        q, k = (
            context.rotation(proj(x).unflatten(-1, (-1, mixer.dims.head_dim)).transpose(1, 2), context.places)
            for proj in (mixer.q_proj, mixer.k_proj)
        )
        maps.append((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))

    hooks = [layer.mixer.register_forward_pre_hook(read) for layer in model.encoder.layers]
    with torch.no_grad():
        model.encoder(input_ids=ids)
    for hook in hooks:
        hook.remove()
    return maps


def _share(maps: Tensor) -> Tensor:
    """Returns the sum of the n largest singular values over the sum of all, for every n."""
    values = torch.linalg.svdvals(maps)
    return (values.cumsum(-1) / values.sum(-1, keepdim=True)).flatten(0, -2).mean(0)


def _train(lab: Lab, model: _Guesser, text: Any, length: int, steps: int, seed: int, rate: float) -> None:
    batch = 16
    windows = lab.windows(text, length, steps * batch, seed)
    lab.train(model, windows, batch=batch, learning_rate=rate, seed=seed, collate=_collate(seed))


def _rank(lab: Lab) -> Finding:
    length, layers, steps = lab.scaled(128, 256), lab.scaled(2, 4), lab.scaled(150, 800)
    quarter, text, seeds = length // 4 - 1, lab.text(), lab.seeds[:2]
    ids = _collate(1)([{"input_ids": row} for row in lab.held_out(text, length, 8)])["input_ids"]
    shares: list[list[Tensor]] = []
    fresh, torn = [], []
    for seed in seeds:
        lab.say(f"training, seed {seed}")
        model = _Guesser(lab, seed, length, num_hidden_layers=layers)
        fresh.append(sum(_share(m)[quarter].item() for m in _maps(model, ids)) / layers)
        _train(lab, model, text, length, steps, seed, 3e-3)
        maps = _maps(model, ids)
        shares.append([_share(m) for m in maps])
        order = torch.rand(maps[0].shape, generator=torch.Generator().manual_seed(seed)).argsort(-1)
        torn.append(sum(_share(m.gather(-1, order))[quarter].item() for m in maps) / layers)
    found = [[share[quarter].item() for share in one] for one in shares]
    mean = tuple(sum(one) / layers for one in found)
    deeper = all(one[-1] > one[0] for one in found)
    verdict = judge(min(mean), 0.9, 0.75)
    rank = tuple((i + 1) / length for i in range(length))
    curves = tuple(
        Curve(name, rank, tuple(torch.stack([one[i] for one in shares]).mean(0).tolist()))
        for name, i in (("last layer", -1), ("first layer", 0))
    )
    by_layer = ", ".join(f"{sum(one[i] for one in found) / len(found):.2f}" for i in range(layers))
    return Finding(
        "holds in part" if verdict == "holds" and not deeper else verdict,
        "In a small encoder trained to guess hidden bytes, the largest quarter of the singular values of a "
        f"map over {length} tokens has {min(mean):.2f} to {max(mean):.2f} of the sum of all ({len(seeds)} "
        f"seeds); from the first layer to the last {by_layer}. Before the training it has "
        f"{median(fresh):.2f}; with the weights of every row shuffled, so that nothing but their flatness is "
        f"left, {median(torn):.2f}; of equal values 0.25.",
        (
            Figure("share of the largest quarter of the singular values", mean),
            Figure("the same, before training", tuple(fresh)),
            Figure("the same, rows shuffled", tuple(torn)),
            Figure("first layer", tuple(one[0] for one in found)),
            Figure("last layer", tuple(one[-1] for one in found)),
        ),
        Plot("singular values, share of their number", "their sum, share of all", curves),
    )


def _slots(lab: Lab) -> Finding:
    length, layers, steps = lab.scaled(64, 128), lab.scaled(1, 2), lab.scaled(400, 1200)
    quarter = length // 4
    tried = lab.scaled((quarter,), (length // 8, quarter, length // 2))
    text, seeds = lab.text(), lab.seeds[:2]
    ids = lab.held_out(text, length, lab.scaled(256, 512))
    fresh = _collate(1)([{"input_ids": row} for row in ids])
    hidden = fresh["labels"][fresh["labels"] >= 0]
    common = torch.bincount(ids.flatten(), minlength=_HIDDEN).float()
    blind = -(common / common.sum())[hidden].log().mean().item()

    def loss(seed: int, slots: int | None) -> float:
        lab.say(f"training, seed {seed}, {'full attention' if slots is None else f'{slots} slots'}")
        mixer: dict[str, Any] = {"pattern": "F"}
        if slots is not None:
            mixer = {"pattern": "L", "options": {"linformer": {"slots": slots}}}
        model = _Guesser(lab, seed, length, num_hidden_layers=layers, position="learned", **mixer)
        _train(lab, model, text, length, steps, seed, lab.scaled(5e-3, 3e-3))
        with torch.no_grad():
            parts = zip(fresh["input_ids"].split(64), fresh["labels"].split(64), strict=True)
            losses = [model(one, labels)["loss"].item() for one, labels in parts]
        return sum(losses) / len(losses)

    full = [loss(seed, None) for seed in seeds]
    found = {slots: [loss(seed, slots) for seed in seeds] for slots in tried}
    if max(full) > blind - 0.1:
        raise Untestable("full attention learnt no more than how frequent bytes are")
    kept = tuple((blind - ours) / (blind - best) for ours, best in zip(found[quarter], full, strict=True))
    losses = ", ".join(f"{median(values):.2f} with k = {slots}" for slots, values in found.items())
    x = tuple(map(float, tried))
    return Finding(
        judge(min(kept), 0.95, 0.75),
        f"Nats a hidden byte, n = {length}: {median(full):.2f} with full attention, {losses}, {blind:.2f} "
        f"for a guess by frequency alone. So k = n/4 keeps {100 * min(kept):.0f} to {100 * max(kept):.0f} % "
        f"of what attention wins ({len(seeds)} seeds, {steps} steps).",
        (
            Figure("full attention", tuple(full), "nats"),
            *(Figure(f"k = {slots}", tuple(values), "nats") for slots, values in found.items()),
            Figure("share kept with k = n/4", kept),
        ),
        Plot(
            "slots k",
            "nats a hidden byte",
            (
                Curve(
                    "Linformer",
                    x,
                    tuple(median(v) for v in found.values()),
                    tuple(min(v) for v in found.values()),
                    tuple(max(v) for v in found.values()),
                ),
                Curve("full attention", x, tuple(median(full) for _ in x)),
            ),
            log_x=True,
        )
        if len(tried) > 1
        else None,
    )


# Times faster and times less memory with k = 128, table 3 of the paper.
_PAPER = {512: (1.5, 1.7), 1024: (1.7, 3.0), 2048: (2.6, 6.1), 4096: (3.4, 14.0), 8192: (5.5, 28.0)}


def _cost(lab: Lab) -> Finding:
    lengths = lab.scaled((1024, 2048, 4096), (512, 1024, 2048, 4096, 8192))
    ways: dict[str, dict[str, Any]] = {
        "Linformer": {
            "pattern": "L",
            "options": {"linformer": {"slots": 128, "sharing": "layerwise"}},
        },
        "scores stored": {"pattern": "F"},  # by PyTorch's plain softmax
        "fused exact": {"pattern": "F"},
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, list[float]] = {name: [] for name in ways}
    for length in lengths:
        lab.say(f"{length} tokens")
        ids = torch.randint(257, (1, length), generator=torch.Generator().manual_seed(0))

        def reads(name: str, ids: Tensor = ids) -> Callable[[], Any]:
            sizes = {"hidden_size": 256, "max_position_embeddings": ids.shape[1], "position": "learned"}
            model = lab.classifier(num_hidden_layers=1, is_causal=False, **sizes, **ways[name]).eval()

            def read() -> Any:
                with sdpa_kernel(SDPBackend.MATH) if name == "scores stored" else nullcontext():
                    return model(input_ids=ids)

            return read

        calls = {name: reads(name) for name in ways}
        with torch.no_grad():
            for name, seconds in lab.seconds(calls, 3).items():
                times[name].append(1e3 * median(seconds))
                peaks[name].append(median(lab.peak(calls[name]) for _ in range(3)) / _MIB)

    def power(values: list[float]) -> float:
        # At the end, where fixed costs count least.
        return math.log(values[-1] / values[-2]) / math.log(lengths[-1] / lengths[-2])

    def saved(values: dict[str, list[float]], than: str) -> float:
        return values[than][-1] / values["Linformer"][-1]

    time_power, memory_power = power(times["Linformer"]), power(peaks["Linformer"])
    faster, less = saved(times, "scores stored"), saved(peaks, "scores stored")
    paper_faster, paper_less = _PAPER[lengths[-1]]
    linear = max(time_power, memory_power) < 1.25
    return Finding(
        judge(min(faster / paper_faster, less / paper_less) if linear else 0, 0.8, 0.3),
        f"An encoder layer with k = 128: time grows with the length to the power {time_power:.2f}, memory "
        f"to the power {memory_power:.2f}. At {lengths[-1]:,} tokens it is {faster:.1f} times as fast as "
        f"with stored scores, in {less:.1f} times less memory (the paper: {paper_faster} and "
        f"{paper_less:.0f}). Fused exact attention, which the paper did not know, takes "
        f"{saved(times, 'fused exact'):.1f} times as long as Linformer, in "
        f"{saved(peaks, 'fused exact'):.1f} times its memory.",
        (
            Figure("power of the length, time", (time_power,)),
            Figure("power of the length, memory", (memory_power,)),
            Figure("times as fast as with stored scores", (faster,)),
            Figure("times less memory than with stored scores", (less,)),
            Figure("time of fused exact attention over Linformer's", (saved(times, "fused exact"),)),
            Figure("memory of fused exact attention over Linformer's", (saved(peaks, "fused exact"),)),
        ),
        Plot(
            "tokens",
            "ms a text",
            tuple(Curve(name, tuple(map(float, lengths)), tuple(times[name])) for name in ways),
            log_x=True,
            log_y=True,
        ),
    )


CLAIMS = (
    Claim(
        "low-rank",
        "Maps of attention are nearly of low rank: of 512 singular values few hold most of the sum, and in "
        "higher layers fewer still.",
        "2006.04768, figure 1",
        "Singular values of the maps of a small encoder, trained for minutes at most to guess hidden bytes "
        "of Python source; the paper's are RoBERTa's, over 512 words. It holds if a quarter of the values "
        "has 0.9 of the sum, and more so in the last layer than in the first.",
        _rank,
    ),
    Claim(
        "quarter-of-length",
        "With k = n/4 slots the loss of a masked language model is close to that of full attention "
        "(k = 128 for n = 512, k = 256 for n = 1,024).",
        "2006.04768, figure 3",
        "Small encoders with learned positions guess hidden bytes of Python source, trained alike with full "
        "attention and with slots; far shorter texts and trainings, and bytes in place of words.",
        _slots,
    ),
    Claim(
        "linear-cost",
        "Time and memory are linear in the length: with k = 128 a text of 4,096 tokens is read 3.4 times as "
        "fast, in 14 times less memory (8,192: 5.5 and 28 times).",
        "2006.04768, table 3",
        "One layer of width 256 reads one text on the processor; the paper's model ran on a GPU. Also held "
        "against exact attention in a fused kernel.",
        _cost,
    ),
)
