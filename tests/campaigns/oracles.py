"""Formulas of the public functions that have one implementation only, in float64 and the fewest lines."""

import math

import torch

from nonet.flash import flash_attention
from nonet.matmulfree import reference as ternary


def tiled_attention(q, k, v, block_q=64, block_k=64, traffic=None, alibi_slopes=None, **options):
    slopes = None if alibi_slopes is None else alibi_slopes.detach()
    outs = flash_attention(q, k, v, alibi_slopes=slopes, **options, impl="reference")
    if not options["return_lse"]:
        return outs
    return outs[0], outs[1].to(torch.promote_types(q.dtype, torch.float32))


def summarise(x, e, block_size):
    blocks = x.shape[2] // block_size
    cut = x[:, :, : blocks * block_size].reshape(*x.shape[:2], blocks, block_size, x.shape[3])
    return torch.einsum("bgmcd,gkc->bgmkd", cut, e.expand(x.shape[1], *e.shape[-2:]))


def alibi_slopes(n_heads, length=None, train_length=None):
    below = 2 ** int(math.log2(n_heads))
    slopes = [2 ** (-8 * (h + 1) / below) for h in range(below)]
    slopes += [2 ** (-8 * (2 * h + 1) / (2 * below)) for h in range(n_heads - below)]
    return torch.tensor(slopes) * (1 if length is None else min(1, train_length / length))


def alibi_bias(slopes, queries, keys):
    distances = [[abs(keys - queries + i - j) for j in range(keys)] for i in range(queries)]
    return -slopes[:, None, None] * torch.tensor(distances).to(slopes)


def rotary_angles(inv_freq, places, attention_factor=1.0):
    angles = torch.einsum("bt,h->bth", places.to(inv_freq), inv_freq)
    return angles.cos() * attention_factor, angles.sin() * attention_factor


def sinusoidal(places, width, dtype=torch.float32):
    rates = 1.0 / 10000.0 ** (torch.arange(0, width, 2, dtype=dtype) / width)
    angles = torch.einsum("bt,h->bth", places.to(dtype), rates)
    return torch.stack([angles.sin(), angles.cos()], -1).reshape(*places.shape, width)


def lsh_buckets(qk, rotations):
    x = qk.to(torch.promote_types(qk.dtype, torch.float32))
    turned = torch.einsum("bhtd,hrfde->bhrtfe", x, rotations.to(x).expand(qk.shape[1], *rotations.shape[1:]))
    hashes = torch.cat([turned, -turned], -1).argmax(-1)
    n = 2 * rotations.shape[-1]
    return sum(hashes[..., f] * n**f for f in range(rotations.shape[2])).int()


@torch.no_grad()
def pack_ternary(weight):
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    return ternary.bit_linear(torch.eye(weight.shape[1]).to(wide), wide, None, None, 1e-6).mT.float()


def chunked(function, x, size, dim=1):
    return x.clone()


def accept_greedy(draft, scores):
    best = scores.argmax(-1)
    wrong = [*(draft != best[:-1]).tolist(), True]
    return torch.tensor([wrong.index(True)]), best[wrong.index(True)][None]


def expected_tokens(acceptance, block):
    return sum(float(acceptance) ** i for i in range(block + 1))


def frequent_tokens(ids, size):
    found, counts = ids[ids >= 0].unique(return_counts=True)
    return found[counts.argsort(descending=True, stable=True)[:size]].sort().values
