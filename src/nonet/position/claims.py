"""What the papers of ALiBi and RoPE claim about longer texts than those of training, as experiments."""

from __future__ import annotations

import math
from statistics import fmean
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nonet.claim import Claim, Curve, Figure, Finding, Plot, Verdict, judge
from nonet.position.api import rotary_frequencies

if TYPE_CHECKING:
    from nonet.ledger import Lab

_HEADS, _WIDTH, _LAST = 4, 64, 16  # _LAST: places that a sliding window scores
_FLAT = 0.01  # a loss that rises by less than this share counts as unchanged

# Models that several claims measure; each is trained once for a size of the experiment.
_kept: dict[tuple[bool, str, int], Any] = {}


def _length(lab: Lab) -> int:
    return lab.scaled(64, 128)


def _model(lab: Lab, position: str, seed: int, **options: Any) -> Any:
    """Returns a new model, with options of its position."""
    return lab.language_model(
        seed,
        position=position,
        hidden_size=_WIDTH,
        num_attention_heads=_HEADS,
        max_position_embeddings=_length(lab),
        options={position: options} if options else {},
    )


def _trained(lab: Lab, position: str, seed: int) -> Any:
    """Returns a model that was trained on windows of the length L, and is not to be changed."""
    key = (lab.full, position, seed)
    if key not in _kept:
        lab.say(f"{position}, seed {seed}")
        model, batch, steps = _model(lab, position, seed), 16, lab.scaled(240, 800)
        items = lab.windows(lab.text(), _length(lab), batch * steps, seed)
        lab.train(model, items, batch=batch, learning_rate=8e-3, seed=seed)
        _kept[key] = model
    return _kept[key]


def _changed(lab: Lab, model: Any, **options: Any) -> Any:
    """Returns a copy of a model whose position has other options."""
    copy = _model(lab, model.config.position, 0, **options)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


@torch.no_grad()
def _cut(model: Any, ids: Tensor, length: int) -> float:
    """Returns the mean loss of texts that are cut into windows which do not overlap, of all their places."""
    pieces = ids.reshape(-1, length).split(max(1, 4096 // length))
    found = []
    for piece in pieces:
        logits = model(input_ids=piece, use_cache=False).logits[:, :-1]
        found.append(F.cross_entropy(logits.transpose(1, 2), piece[:, 1:], reduction="none"))
    return torch.cat(found).mean().item()


@torch.no_grad()
def _slid(model: Any, ids: Tensor, length: int) -> float:
    """Returns the mean loss of the last places of windows, the same places of the text at each length."""
    window = ids[:, -length:]
    found = []
    for piece in window.split(max(1, 4096 // length)):
        logits = model(input_ids=piece, use_cache=False, logits_to_keep=_LAST + 1).logits[:, :-1]
        found.append(F.cross_entropy(logits.transpose(1, 2), piece[:, -_LAST:], reduction="none"))
    return torch.cat(found).mean().item()


def _curve(name: str, lengths: tuple[int, ...], losses: list[list[float]]) -> Curve:
    """Returns a line through the means over seeds; ``losses`` holds a list a seed."""
    by_length = list(zip(*losses, strict=True))
    return Curve(
        name,
        tuple(map(float, lengths)),
        tuple(map(fmean, by_length)),
        tuple(map(min, by_length)),
        tuple(map(max, by_length)),
    )


def _longer(lab: Lab) -> Finding:
    own = _length(lab)
    lengths = tuple(own * times for times in lab.scaled((1, 2, 4, 16), (1, 2, 4, 8, 16)))
    ids = lab.held_out(lab.text(), lengths[-1], lab.scaled(40, 80))
    some = ids[: len(ids) // 5]
    names = {"rope": "RoPE", "sinusoidal": "sinusoids", "alibi": "ALiBi"}
    cut: dict[str, list[list[float]]] = {position: [] for position in names}
    slid: dict[str, list[list[float]]] = {position: [] for position in names}
    for seed in lab.seeds:
        for position in names:
            model = _trained(lab, position, seed)
            cut[position].append([_cut(model, some, n) for n in lengths])
            slid[position].append([_slid(model, ids, n) for n in lengths])
    better = all(run[-1] <= run[0] for run in cut["alibi"])
    flat = all(run[-1] <= (1 + _FLAT) * run[0] for run in slid["alibi"])
    others_rise = all(run[-1] > (1 + _FLAT) * run[0] for p in ("rope", "sinusoidal") for run in cut[p])
    order = all(a[-1] < b[-1] for a, b in zip(cut["rope"], cut["sinusoidal"], strict=True))
    verdict: Verdict = "does not hold here"
    if flat and others_rise:
        verdict = "holds" if better and order else "holds in part"

    def told(found: dict[str, list[list[float]]]) -> str:
        parts = [
            f"{name} {fmean(run[0] for run in found[p]):.2f} to {fmean(run[-1] for run in found[p]):.2f}"
            for p, name in names.items()
        ]
        return ", ".join(parts)

    times = lengths[-1] // own
    return Finding(
        verdict,
        f"Loss in nats a byte from {own} tokens to {times} times as many, all places of windows that do not "
        f"overlap: {told(cut)}. Sliding, the last {_LAST} places of each window: "
        f"{told(slid)} (means of {len(lab.seeds)} seeds). ALiBi {'falls' if better else 'does not fall'} in "
        f"the first way and {'stays' if flat else 'does not stay'} level in the second; RoPE is "
        f"{'below' if order else 'not always below'} the sinusoids at {times} times.",
        tuple(
            Figure(
                f"{name} at {times} times, {way}", tuple(run[-1] - run[0] for run in found[p]), "nats more"
            )
            for p, name in names.items()
            for way, found in (("cut", cut), ("sliding", slid))
        ),
        Plot(
            "tokens of context",
            "loss, nats a byte",
            tuple(_curve(name, lengths, cut[p]) for p, name in names.items()),
            log_x=True,
        ),
    )


def _scaled_rope(factor: float, length: int) -> dict[str, dict[str, Any]]:
    """Returns the options of RoPE and its scalings, to read ``factor`` times the length of training."""
    turning = _WIDTH // _HEADS
    return {
        "plain": {},
        "PI": {"scaling": {"kind": "linear", "factor": factor}},
        "NTK": {"base": 1e4 * factor ** (turning / (turning - 2))},
        "YaRN": {"scaling": {"kind": "yarn", "factor": factor, "original_length": length}},
    }


def _stretched(lab: Lab) -> Finding:
    own, middle = _length(lab), 4
    times, steps = (2, middle, 8), lab.scaled(40, 100)
    ids = lab.held_out(lab.text(), own * times[-1], lab.scaled(32, 64))
    some = ids[: len(ids) // 4]
    names = tuple(_scaled_rope(1, own))
    before: dict[str, list[list[float]]] = {name: [] for name in names}
    cut: dict[str, list[float]] = {name: [] for name in names}
    after: dict[str, list[float]] = {name: [] for name in ("plain", "PI", "YaRN")}
    start = []
    for seed in lab.seeds:
        model = _trained(lab, "rope", seed)
        start.append(_slid(model, ids, own))
        for name in names:
            models = {s: _changed(lab, model, **_scaled_rope(s, own)[name]) for s in times}
            before[name].append([start[-1], *(_slid(models[s], ids, own * s) for s in times)])
            cut[name].append(_cut(models[middle], some, own * middle))
            if name in after:
                lab.say(f"{name}, {steps} steps at {middle} times the length")
                items = lab.windows(lab.text(), own * middle, 4 * steps, seed + 100)
                lab.train(models[middle], items, batch=4, learning_rate=2e-3, seed=seed)
                after[name].append(_slid(models[middle], ids, own * middle))
    at = {name: [run[1 + times.index(middle)] for run in runs] for name, runs in before.items()}

    def below(low: list[float], high: list[float]) -> bool:
        return all(a < b for a, b in zip(low, high, strict=True))

    untrained = below(at["PI"], at["plain"])
    parts = all(below(at[name], at["PI"]) for name in ("NTK", "YaRN"))
    tuned = below(after["PI"], start) and below(after["PI"], after["plain"])
    found = (untrained, parts, tuned)
    verdict: Verdict = "holds" if all(found) else "holds in part" if any(found) else "does not hold here"

    def told(losses: dict[str, list[float]]) -> str:
        return ", ".join(f"{name} {fmean(values):.2f}" for name, values in losses.items())

    return Finding(
        verdict,
        f"Loss in nats a byte at {middle} times the length of training, sliding as in the paper, where "
        f"{fmean(start):.2f} is the loss at the length itself: {told(at)}. After {steps} further steps: "
        f"{told(after)}. In windows that do not overlap, untrained: {told(cut)}. Sliding and untrained, PI "
        f"is {'below' if untrained else 'not always below'} plain RoPE, NTK and YaRN are "
        f"{'below' if parts else 'not always below'} PI; taught, PI is "
        f"{'below' if tuned else 'not always below'} both the short model and plain RoPE "
        f"({len(lab.seeds)} seeds).",
        (
            *(Figure(f"{name}, untrained", tuple(losses), "nats") for name, losses in at.items()),
            *(Figure(f"{name}, taught", tuple(losses), "nats") for name, losses in after.items()),
        ),
        Plot(
            "tokens of context",
            "loss of the last places, nats a byte",
            tuple(
                _curve(name, (own, *(own * s for s in times)), before[name])
                for name in ("YaRN", "plain", "PI", "NTK")
            ),
            log_x=True,
        ),
    )


def _flatter(lab: Lab) -> Finding:
    own = _length(lab)
    times = (1, 2, 4)
    ids = lab.held_out(lab.text(), own * times[-1], lab.scaled(48, 96))
    plain: list[list[float]] = []
    flatter: list[list[float]] = []
    last: list[tuple[float, float]] = []
    for seed in lab.seeds:
        model = _trained(lab, "alibi", seed)
        other = _changed(lab, model, interpolate=True)
        plain.append([_cut(model, ids, own * s) for s in times])
        flatter.append([_cut(other, ids, own * s) for s in times])
        last.append((_slid(model, ids, own * 2), _slid(other, ids, own * 2)))
    kept = all(run[1] <= (1 + _FLAT) * run[0] for run in flatter)
    gains = all(run[1] < steep[1] for run, steep in zip(flatter, plain, strict=True))
    loses = any(run[1] > (1 + _FLAT) * run[0] for run in plain)
    verdict: Verdict = (
        "holds" if kept and gains else "holds in part" if kept or gains else "does not hold here"
    )
    steep_last, flat_last = (fmean(pair[i] for pair in last) for i in (0, 1))
    return Finding(
        verdict,
        f"Loss in nats a byte at once and twice the length of training: slopes kept "
        f"{fmean(run[0] for run in plain):.3f} and {fmean(run[1] for run in plain):.3f}, slopes scaled "
        f"{fmean(run[0] for run in flatter):.3f} and {fmean(run[1] for run in flatter):.3f}; sliding, at "
        f"twice, {steep_last:.3f} and {flat_last:.3f} ({len(last)} seeds). ALiBi with its own slopes "
        f"{'loses' if loses else 'loses nothing'} at twice the length; scaled slopes are "
        f"{'better' if gains else 'not always better'} there.",
        (
            Figure("slopes kept, twice the length", tuple(run[1] - run[0] for run in plain), "nats more"),
            Figure("slopes scaled, twice the length", tuple(run[1] - run[0] for run in flatter), "nats more"),
        ),
        Plot(
            "tokens of context",
            "loss, nats a byte",
            (
                _curve("slopes scaled", tuple(own * s for s in times), flatter),
                _curve("slopes kept", tuple(own * s for s in times), plain),
            ),
            log_x=True,
        ),
    )


def _bounds(lab: Lab) -> Finding:
    width, length = 128, 2048
    theta, _ = rotary_frequencies(width, dtype=torch.float64)

    def turns(places: Tensor) -> Tensor:
        angles = places.double()[:, None] * theta
        return torch.cat([angles.cos(), -angles.sin()], dim=1)

    # Theorem 2.1: halfway between two places d max|h| / (32 ln b); beyond, 2 max|h| sum_k |A_k(s)|.
    beyond = torch.arange(length, 4 * length)
    partial_sums = torch.exp(1j * beyond.double()[:, None] * theta).cumsum(1).abs().sum(1)
    ratios = 2 * partial_sums / (width / (32 * math.log(1e4)))
    least, share = ratios.min().item(), (ratios >= 600).double().mean().item()
    between, outside = [], []
    for seed in range(lab.scaled(3, 10)):
        wanted = 2 * torch.rand(length, 1, generator=torch.Generator().manual_seed(seed)).double() - 1
        places = torch.arange(length)
        h = torch.linalg.lstsq(turns(places), wanted, driver="gelsd").solution
        between.append((turns(places[:-1] + 0.5) @ h).abs().max().item())
        outside.append((turns(places + length) @ h).abs().max().item())
    fits = min(outside) > 600 * max(between)
    verdict = judge(least if fits else 0.0, 600, 300)
    return Finding(
        verdict,
        f"For {width} dims the bound beyond {length:,} places, up to four times as far, is at least "
        f"{least:.0f} times the one between places, and at least 600 times at {100 * share:.1f} % of them. "
        f"Scores that were fitted to noise from -1 to 1 on {length:,} places reach at "
        f"most {max(between):.2f} halfway between these, and {min(outside):.0e} or more in the next "
        f"{length:,} ({len(between)} fits).",
        (
            Figure("bound beyond over bound between, least", (least,)),
            Figure("largest fitted score between places", tuple(between)),
            Figure("largest fitted score beyond", tuple(outside)),
        ),
    )


CLAIMS = (
    Claim(
        "alibi-longer",
        "Trained on 512 tokens, ALiBi reads 3,512 no worse (perplexity 19.7 at 512, 18.4 at 3,512), level "
        "when the window slides; rotary goes from 20.1 to 35.5, sinusoids from 20.1 to 179.",
        "2108.12409, table 2 and appendix B",
        "Small models of bytes, two layers of width 64, are trained on short windows and read up to 16 times "
        "as many tokens, cut and sliding, the same text at each length.",
        _longer,
    ),
    Claim(
        "rope-stretched",
        "Beyond its length plain RoPE fails (perplexity above 1,000); interpolated (PI) it stays below 20 at "
        "four times the length untrained, and 1,000 steps bring 6.95, better than 7.20 of the short model "
        "and 7.69 of plain RoPE taught at that length. NTK-aware scaling is better than PI untrained.",
        "2306.15595, section 3.2; 2309.00071, section 3.1",
        "The same small models at 2, 4 and 8 times their length with PI, NTK-aware scaling and YaRN; some "
        "are then taught for a few steps at 4 times.",
        _stretched,
    ),
    Claim(
        "alibi-interpolated",
        "With slopes scaled by the length of training over that of the input, ALiBi reads about twice as "
        "long texts without loss and without training.",
        "2310.13017; twice is from the authors' model card of btlm-3b-8k",
        "The same small models at 1, 2 and 4 times their length, with slopes kept and scaled.",
        _flatter,
    ),
    Claim(
        "rope-bounds",
        "Between places that were trained, scores of RoPE are bounded at least about 600 times tighter than "
        "beyond them.",
        "2306.15595, section 2.3, theorem 2.1 and figure 2",
        "Both bounds computed at full size, 128 dims and 2,048 places; scores fitted to noise, as in the "
        "paper's figure, read between and beyond these places.",
        _bounds,
    ),
)
