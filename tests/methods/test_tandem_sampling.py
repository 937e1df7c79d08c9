"""Sampled text has the primary's distribution, whatever drafts it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nonet.tandem import Shortlist, Tandem, speculative_generate

V, NEW, SAMPLES = 3, 4, 400  # four tokens: one of the prompt's pass, a block of two, and one behind it


def llama(seed):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval()


def probabilities(primary, ids, change):
    """Of every sequence of new tokens, by asking the primary for each prefix."""
    grid = torch.cartesian_prod(*[torch.arange(V)] * NEW)
    with torch.no_grad():
        logits = primary(torch.cat([ids.expand(len(grid), -1), grid], 1)).logits[:, ids.shape[1] - 1 : -1]
    p = change(logits.double()).softmax(-1).gather(-1, grid[..., None])[..., 0]
    return p.prod(-1).view((V,) * NEW)


def as_it_is(logits):
    return logits


def warped(logits):
    """Temperature 0.7, and the likeliest two."""
    logits = logits / 0.7
    return logits.masked_fill(logits < logits.topk(2, -1).values[..., -1:], -torch.inf)


def chi_square(kind):
    """Pearson's statistic over all sequences, its degrees of freedom, and whether one was impossible."""
    primary, draft, ids = llama(0), llama(5), torch.tensor([[1, 2]])
    options = {"max_new_tokens": NEW, "do_sample": True, "block": 2, "eos_token_id": ()}
    options["generator"] = torch.Generator().manual_seed(11)
    rows, change = ids.expand(SAMPLES, -1), as_it_is
    if kind == "tandem":
        out = Tandem(primary, draft).generate(rows, **options)
    elif kind == "unverified":
        out = Tandem(primary, draft).generate(rows, verify=False, **options)
    elif kind == "shortlist":
        short = Shortlist(draft, torch.tensor([0, 2]))
        out = speculative_generate(primary, draft, rows, shortlist=short, **options)
    elif kind == "warped":
        change = warped
        out = speculative_generate(primary, draft, rows, temperature=0.7, top_k=2, **options)
    else:
        out = speculative_generate(primary, draft, rows, **options)
    expected = SAMPLES * probabilities(primary, ids, change)
    found = torch.zeros_like(expected)
    for row in out[:, 2:].tolist():
        found[tuple(row)] += 1
    can = expected > 0
    statistic = ((found - expected).square() / expected)[can].sum().item()
    return statistic, int(can.sum()) - 1, bool(found[~can].any())


def bound(degrees):
    """Beyond this a chi-square lies once in ten thousand times (Wilson and Hilferty)."""
    return degrees * (1 - 2 / (9 * degrees) + 3.719 * (2 / (9 * degrees)) ** 0.5) ** 3


@pytest.mark.parametrize("kind", ["draft", "tandem", "shortlist", "warped"])
def test_samples_have_the_primarys_distribution(kind):
    statistic, degrees, impossible = chi_square(kind)
    assert not impossible
    assert statistic < bound(degrees)


def test_text_that_is_not_verified_has_another():
    """So the test above can fail."""
    statistic, degrees, _ = chi_square("unverified")
    assert statistic > bound(degrees)
