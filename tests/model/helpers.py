import torch

from nonet.model import NonetConfig, NonetForCausalLM
from nonet.registry import parts
from nonet.testing import assert_within_budget

MIXERS = {p.name: p.letter for p in parts("mixer") if p.causal}
# Attention and a recurrence in one model, whichever they are.
HYBRID = "".join(
    next(p.letter for p in parts("mixer") if p.causal and p.recurrent is kind) for kind in (False, True)
)
PATTERNS = {**MIXERS, "hybrid": HYBRID}
TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
}


def make(pattern="F", dtype=torch.float64, seed=0, **fields):
    """A small model whose outputs depend on its weights: first weights are far larger than usual."""
    torch.manual_seed(seed)
    fields = {"initializer_range": 0.2, **TINY, **fields}
    return NonetForCausalLM(NonetConfig(pattern=pattern, **fields)).to(dtype).eval()


def tokens(batch=2, length=70, seed=0):
    return torch.randint(
        1, TINY["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed)
    )


def assert_same(actual, expected, name="result"):
    """Equal to the rounding of float32, for values that were computed in float64."""
    assert actual.dtype == expected.dtype == torch.float64
    assert_within_budget(actual.float(), expected.float(), expected, name)
