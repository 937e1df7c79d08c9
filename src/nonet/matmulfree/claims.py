"""What the papers of MatMul-free models claim, as experiments."""

from __future__ import annotations

from statistics import fmean, median
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nonet.claim import Claim, Curve, Figure, Finding, Plot, Verdict, judge
from nonet.matmulfree.api import hgrn_scan, ternary_linear
from nonet.matmulfree.bitlinear import BitLinear
from nonet.matmulfree.packed import pack_ternary

if TYPE_CHECKING:
    from nonet.ledger import Lab


def _rate(lab: Lab) -> Finding:
    rates = lab.scaled((2e-3, 8e-3, 3.2e-2), (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2))
    steps, window, batch = lab.scaled((160, 64, 8), (400, 128, 8))
    text, seeds = lab.text(), lab.seeds[: lab.scaled(1, 3)]
    losses: dict[str, list[list[float]]] = {"ternary": [], "dense": []}
    for linear, found in losses.items():
        for seed in seeds:
            lab.say(f"{linear}, seed {seed}")
            run = []
            for rate in rates:
                model = lab.language_model(seed, pattern="G", linear=linear)
                items = lab.windows(text, window, steps * batch, seed)
                lab.train(model, items, batch=batch, learning_rate=rate, seed=seed)
                run.append(text.bits_per_byte(lab.nats(model, text, window, 64).mean().item()))
            found.append(run)
    best = {linear: [rates[run.index(min(run))] for run in found] for linear, found in losses.items()}
    trained = f"{len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'}, {steps} steps"
    ratios = tuple(a / b for a, b in zip(best["ternary"], best["dense"], strict=True))
    verdict = judge(min(ratios), 8, 2)
    if verdict == "holds" and not lab.full:
        verdict = "holds in part"  # one seed, and rates that lie far apart
    means = {linear: [fmean(at) for at in zip(*found, strict=True)] for linear, found in losses.items()}
    return Finding(
        verdict,
        f"The best of {len(rates)} rates from {rates[0]:g} to {rates[-1]:g} is "
        f"{median(best['ternary']):g} for ternary weights and {median(best['dense']):g} for dense ones, "
        f"{median(ratios):g} times as high ({trained}); they reach {min(means['ternary']):.2f} "
        f"and {min(means['dense']):.2f} bits a byte.",
        (Figure("best rate of ternary over best rate of dense weights", ratios),),
        Plot(
            "learning rate",
            "bits a byte",
            tuple(Curve(linear, rates, tuple(found)) for linear, found in means.items()),
            log_x=True,
        ),
    )


def _smaller(lab: Lab) -> Finding:
    width = lab.scaled(1024, 4096)
    torch.manual_seed(0)
    layer, x = BitLinear(width, width), torch.randn(8, width)
    packed = pack_ternary(layer.weight)
    bits = 8 * packed.nbytes / width**2
    same = torch.equal(ternary_linear(x, packed, layer.bias, layer.norm_weight), layer(x))
    less = 16 / bits
    verdict: Verdict = judge(less, 10, 2) if same else "does not hold here"
    return Finding(
        verdict,
        f"A weight takes {bits:.2f} bits, {less:.1f} times fewer than in float16, and the packed layer of "
        f"{width:,} by {width:,} {'gives' if same else 'does not give'} the very bits of the one that is "
        "trained.",
        (Figure("bits a weight", (bits,)), Figure("times smaller than float16", (less,))),
    )


def _faster(lab: Lab) -> Finding:
    width = lab.scaled(1024, 4096)
    torch.manual_seed(0)
    dense, x = torch.randn(width, width), torch.randn(1, width)
    packed = pack_ternary(dense)
    with torch.no_grad():
        found = lab.seconds(
            {"dense": lambda: x @ dense.T, "packed": lambda: ternary_linear(x, packed)}, lab.scaled(15, 31)
        )
    ratios = tuple(a / b for a, b in zip(found["dense"], found["packed"], strict=True))
    return Finding(
        judge(median(ratios), 3, 1.2),
        f"One token through {width:,} by {width:,} weights takes {1e6 * median(found['packed']):,.0f} µs "
        f"packed and {1e6 * median(found['dense']):,.0f} µs in dense float32: {median(ratios):.2f} times as "
        f"fast ({min(ratios):.2f} to {max(ratios):.2f}, {lab.threads}). PyTorch has no product with "
        "packed weights, so they are unpacked at every call.",
        (Figure("times as fast", ratios),),
    )


def _states(i: Tensor, f: Tensor, impl: str = "auto") -> Tensor:
    states = hgrn_scan(i, f, impl=impl)
    assert isinstance(states, Tensor)
    return states


def _constant(lab: Lab) -> Finding:
    length, channels = lab.scaled(512, 8192), 256
    torch.manual_seed(0)
    f, i = torch.rand(1, channels, length), torch.randn(1, channels, length)
    whole = _states(i, f)
    state, steps = torch.zeros(1, channels), []
    for t in range(length):
        one = slice(t, t + 1)
        y, state = hgrn_scan(i[..., one], f[..., one], initial_state=state, return_last_state=True)
        steps.append(y)
    gold = _states(i.double(), f.double(), "reference")
    apart = (torch.cat(steps, -1).double() - gold).abs().max().item()
    usual = (_states(i, f, "reference").double() - gold).abs().max().item()
    together = (whole.double() - gold).abs().max().item()
    holds = max(apart, together) <= 2 * usual and state.numel() == channels
    return Finding(
        "holds" if holds else "does not hold here",
        f"{length:,} tokens at once err by {together:.1e} against float64 and one by one by {apart:.1e}, "
        f"plain PyTorch by {usual:.1e}; between tokens {state.numel()} numbers are kept for {channels} "
        "channels.",
        (Figure("error at once", (together,)), Figure("error one by one", (apart,))),
    )


CLAIMS = (
    Claim(
        "higher-rate",
        "At 370 million weights ternary ones want a learning rate 13 times as high as dense ones (4e-3 "
        "against 3e-4).",
        "2406.02528, section 3.4",
        "Small MLGRU models with ternary and with dense weights, trained alike at several rates on bytes. "
        "The quick size has one seed and three rates, and says no more than in part.",
        _rate,
    ),
    Claim(
        "ten-times-smaller",
        "Inference takes more than ten times less memory than that of a dense model of 13 billion parameters "
        "(4.19 GB in place of 48.50).",
        "2406.02528, figure 4",
        "Bytes of a packed layer, whose output has to be that of the layer that is trained, to the bit.",
        _smaller,
    ),
    Claim(
        "faster-decoding",
        "Inference is 4.6 times as fast as that of a dense model of 13 billion parameters.",
        "2406.02528, figure 4",
        "One token through one matrix on the processor; the paper's runs a GPU kernel for packed weights.",
        _faster,
    ),
    Claim(
        "constant-state",
        "Tokens are mixed by a recurrence that is computed at once in training and step by step in decoding.",
        "2406.02528, section 3.3",
        "The scan over all tokens and over one at a time, both held to float64.",
        _constant,
    ),
)
