"""What the papers of MatMul-free models and of BitNet claim, as experiments."""

from __future__ import annotations

from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from nonet.claim import Claim, Curve, Figure, Finding, Plot, Verdict, judge
from nonet.matmulfree import reference
from nonet.matmulfree.api import hgrn_scan, ternary_linear
from nonet.matmulfree.bitlinear import BitLinear
from nonet.matmulfree.packed import pack_ternary

if TYPE_CHECKING:
    from nonet.ledger import Lab

_MODEL: dict[str, Any] = {"pattern": "G", "position": "none"}
_MIB = 2**20


class PackedLinear(nn.Module):
    """A ternary layer whose weights lie at two bits each.

    Args:
        layer: what is packed.
    """

    def __init__(self, layer: BitLinear) -> None:
        super().__init__()
        self.packed, self.eps = layer.pack(), layer.eps
        self.bias, self.norm_weight = layer.bias, layer.norm_weight

    def forward(self, x: Tensor) -> Tensor:
        """Returns what the layer returned."""
        return ternary_linear(x, self.packed, self.bias, self.norm_weight, self.eps)


def pack_model(model: nn.Module) -> list[PackedLinear]:
    """Packs all ternary layers of a model, in place, and returns what they became."""
    found = []
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, BitLinear):
                found.append(PackedLinear(child))
                setattr(module, name, found[-1])
    return found


def _rate(lab: Lab) -> Finding:
    width, steps, length, batch = lab.scaled((64, 60, 48, 16), (128, 300, 64, 16))
    rates = tuple(1e-3 * 2**n for n in lab.scaled(range(1, 7), range(7)))
    seeds, text = lab.seeds[: lab.scaled(1, 3)], lab.text()
    losses: dict[str, list[list[float]]] = {"ternary": [], "dense": []}
    for seed in seeds:
        items = lab.windows(text, length, steps * batch, seed)
        for linear, runs in losses.items():
            runs.append([])
            for rate in rates:
                lab.say(f"{linear}, seed {seed}, learning rate {rate:.3g}")
                model = lab.language_model(seed, hidden_size=width, linear=linear, **_MODEL)
                lab.train(model, items, batch=batch, learning_rate=rate, seed=seed)
                runs[-1].append(lab.nats(model, text, length, 64, batch=16).mean().item())
    best = {linear: [rates[run.index(min(run))] for run in runs] for linear, runs in losses.items()}
    ratios = [t / d for t, d in zip(best["ternary"], best["dense"], strict=True)]
    least = {linear: fmean(map(min, runs)) for linear, runs in losses.items()}
    return Finding(
        judge(min(ratios), 5, 2),
        f"The best of {len(rates)} learning rates is {_all(best['ternary'])} with ternary weights and "
        f"{_all(best['dense'])} with dense ones, {_all(ratios)} times (each seed's, of {len(seeds)}; rates are "
        f"a factor of 2 apart). The losses there are {least['ternary']:.2f} and {least['dense']:.2f} nats a "
        f"byte after {steps} steps, at width {width}.",
        (
            Figure("best rate, ternary over dense", tuple(ratios)),
            Figure("ternary, least loss", tuple(map(min, losses["ternary"])), "nats"),
            Figure("dense, least loss", tuple(map(min, losses["dense"])), "nats"),
        ),
        Plot(
            "learning rate",
            "loss, nats a byte",
            tuple(
                Curve(
                    name,
                    rates,
                    tuple(map(fmean, zip(*losses[linear], strict=True))),
                    tuple(map(min, zip(*losses[linear], strict=True))),
                    tuple(map(max, zip(*losses[linear], strict=True))),
                )
                for name, linear in (("ternary weights", "ternary"), ("dense weights", "dense"))
            ),
            log_x=True,
        ),
    )


@torch.no_grad()
def _exact(lab: Lab) -> Finding:
    widths, wrong, fake = lab.scaled((300, 1000), (300, 1000, 3000)), 0, 0.0
    for seed in lab.seeds:
        for width in widths:
            random = torch.Generator().manual_seed(seed)
            x = torch.randn(64, width, generator=random)
            weight = torch.randn(500, width, generator=random)
            packed = pack_ternary(weight)
            top = x.abs().amax(-1, keepdim=True)
            integers, signs = (x * (127 / top)).round().to(torch.int8), packed.unpack(torch.int64)
            # Where the weight is one the integer is added, where it is minus one it is subtracted.
            sums = torch.stack([(row * signs).sum(-1) for row in integers.long()])
            product = ternary_linear(x, packed)
            wrong += int((sums.float() * (top / 127 * packed.scale) != product).sum())
            floats = reference.bit_linear(x, weight, None, None, 1e-6)
            fake = max(fake, ((product - floats).abs().max() / floats.abs().max()).item())
    model = lab.language_model(hidden_size=256, linear="ternary", **_MODEL).eval()
    ids = torch.randint(257, (4, 64), generator=torch.Generator().manual_seed(0))
    before = model(input_ids=ids).logits
    layers = pack_model(model)
    same = torch.equal(model(input_ids=ids).logits, before)
    weights = sum(layer.packed.shape[0] * layer.packed.shape[1] for layer in layers)
    bits = 8 * sum(layer.packed.nbytes for layer in layers) / weights
    verdict: Verdict = "does not hold here"
    if wrong == 0 and fake < 1e-5:
        verdict = "holds" if same and bits < 2.01 else "holds in part"
    return Finding(
        verdict,
        f"Sums of whole numbers differ from the packed product in {wrong} of "
        f"{len(lab.seeds) * len(widths) * 64 * 500:,} outputs; the product that training makes in floats is off "
        f"by {fake:.0e} of its largest output. A packed model's logits "
        f"are {'the bits' if same else 'not the bits'} of the model before, and its {weights:,} weights take "
        f"{bits:.3f} bits each.",
        (
            Figure("outputs that differ", (float(wrong),)),
            Figure("largest error of the float product, relative", (fake,)),
            Figure("bits a weight", (bits,)),
        ),
    )


@torch.no_grad()
def _inference(lab: Lab) -> Finding:
    width = lab.scaled(512, 1024)
    models = {
        name: lab.language_model(hidden_size=width, linear=linear, **_MODEL).eval()
        for name, linear in (("packed", "ternary"), ("dense", "dense"))
    }
    layers = pack_model(models["packed"])
    small = sum(layer.packed.nbytes for layer in layers)
    large = sum(4 * layer.packed.shape[0] * layer.packed.shape[1] for layer in layers)
    ids = torch.randint(257, (1, 16), generator=torch.Generator().manual_seed(0))
    caches = {name: model(input_ids=ids, use_cache=True).past_key_values for name, model in models.items()}

    def step(name: str) -> Any:
        return models[name](input_ids=ids[:, -1:], past_key_values=caches[name], use_cache=True)

    taken = lab.seconds({name: (lambda name=name: step(name)) for name in models}, lab.scaled(9, 25))
    ratios = tuple(d / p for p, d in zip(taken["packed"], taken["dense"], strict=True))
    faster, smaller = median(ratios), large / small
    verdict: Verdict = "does not hold here"
    if smaller >= 10:
        verdict = "holds" if faster >= 4 else "holds in part"
    return Finding(
        verdict,
        f"The projections of a model of width {width} take {small / _MIB:.2f} MiB packed and "
        f"{large / _MIB:.1f} MiB in float32, {smaller:.0f} times less (half of that against 16 bits). A token "
        f"takes {1e3 * median(taken['packed']):.1f} ms packed and {1e3 * median(taken['dense']):.1f} ms dense: "
        f"{faster:.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f}). This library unpacks at every "
        "call, so only memory is saved.",
        (Figure("times less memory", (smaller,)), Figure("times as fast", ratios)),
    )


@torch.no_grad()
def _recurrence(lab: Lab) -> Finding:
    length, contexts = lab.scaled(256, 1024), lab.scaled((64, 1024), (64, 1024, 16384))
    model = lab.language_model(linear="ternary", **_MODEL).eval()
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(257, (1, contexts[-1]), generator=random)
    whole = model(input_ids=ids[:, :length], use_cache=False).logits[0]
    cache, steps = None, []
    for token in ids[:, :length].split(1, 1):
        out = model(input_ids=token, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        steps.append(out.logits[0, 0])
    error = ((torch.stack(steps) - whole).abs().max() / whole.abs().max()).item()
    sizes = []
    for context in contexts:
        out = model(input_ids=ids[:, :context], use_cache=True, logits_to_keep=1)
        sizes.append(lab.cache_bytes(out.past_key_values))
    numbers = sizes[0] // 4 // model.config.num_hidden_layers
    i, f = (torch.randn(1, 512, 2048, generator=random) for _ in range(2))

    def scan(impl: str) -> Any:
        return hgrn_scan(i, f, from_logits=True, impl=impl)

    taken = lab.seconds({"auto": lambda: scan("auto"), "reference": lambda: scan("reference")}, 5)
    ratios = tuple(r / a for a, r in zip(taken["auto"], taken["reference"], strict=True))
    right = len(set(sizes)) == 1 and numbers == model.config.hidden_size
    return Finding(
        judge(median(ratios) if right and error < 1e-4 else 0, 2, 1),
        f"Token by token the model gives what it gives over {length} tokens at once, to {error:.0e} of the "
        f"largest logit. Its state is {numbers} numbers a layer of width {model.config.hidden_size}, after "
        f"{contexts[0]:,} tokens as after {contexts[-1]:,}. Over 2,048 tokens the scan is "
        f"{median(ratios):.0f} times as fast as a loop in PyTorch ({min(ratios):.0f} to {max(ratios):.0f}).",
        (
            Figure("largest difference of logits, relative", (error,)),
            Figure("bytes of state", tuple(map(float, sizes))),
            Figure("times as fast as a loop", ratios),
        ),
    )


def _training(lab: Lab) -> Finding:
    rows, width = lab.scaled((4096, 512), (16384, 1024))
    layer = BitLinear(width, width)
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def fused() -> None:
        layer(x).sum().backward()

    def unfused() -> None:
        reference.bit_linear(x, layer.weight, None, layer.norm_weight, layer.eps).sum().backward()

    ways = {"fused": fused, "unfused": unfused}
    taken = lab.seconds(ways, lab.scaled(5, 15))
    peaks = {name: lab.peak(call) / _MIB for name, call in ways.items()}
    shares = tuple(1 - a / b for a, b in zip(taken["fused"], taken["unfused"], strict=True))
    less, quicker = 1 - peaks["fused"] / peaks["unfused"], median(shares)
    verdict: Verdict = "does not hold here"
    if less > 0.1:
        verdict = "holds" if less >= 0.5 and quicker >= 0.2 else "holds in part"
    return Finding(
        verdict,
        f"Both passes of one layer of width {width} over {rows:,} tokens take {100 * quicker:.0f} % less time "
        f"({100 * min(shares):.0f} to {100 * max(shares):.0f}) as one node of the graph than as separate "
        f"operations, and {100 * less:.0f} % less memory at the peak ({peaks['fused']:.0f} and "
        f"{peaks['unfused']:.0f} MiB).",
        (Figure("time saved", shares), Figure("memory saved", (less,))),
    )


def _all(values: list[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


CLAIMS = (
    Claim(
        "larger-learning-rate",
        "Ternary weights want a much larger learning rate: 4e-3 where the transformer of 370 million parameters "
        "is trained at 3e-4, 13 times.",
        "2406.02528, section 4",
        "The best of learning rates a factor of 2 apart, for an MLGRU model with ternary and with dense "
        "weights on bytes; two layers of width 64 (128 at full size).",
        _rate,
    ),
    Claim(
        "exact-integers",
        "Products with ternary weights need additions of 8-bit integers alone, at 1.58 bits of information a "
        "weight.",
        "2402.17764, section 2",
        "Sums of integers against the packed product and the float product of training; the bits of a model "
        "that is packed, at 2 bits a weight.",
        _exact,
    ),
    Claim(
        "small-and-fast-inference",
        "A model of 13 billion parameters takes 4.19 GB in place of 48.5 GB and is 4.57 times as fast.",
        "2406.02528, inference figure",
        "One token of a model with packed weights, against its dense twin in float32 on the processor.",
        _inference,
    ),
    Claim(
        "parallel-and-constant",
        "The token mixer has no matrix from state to state, so it trains in parallel over time, and decodes "
        "with a state of the model's width.",
        "2406.02528, section 3.3.1",
        "A model run at once and token by token; its state after texts of several lengths; the scan against a "
        "loop.",
        _recurrence,
    ),
    Claim(
        "fused-training",
        "A fused ternary layer trains with 25.6 % less time and 61 % less memory.",
        "2406.02528, section 4",
        "Both passes of a single layer on the processor, against separate operations; the paper's is a model "
        "of 1.3 billion parameters on a GPU.",
        _training,
    ),
)
