import copy

import torch
from transformers import FalconMambaConfig, FalconMambaForCausalLM, MambaConfig, MambaForCausalLM

import nonet
from nonet.ecosystem import cache_argument
from nonet.testing import assert_within_budget

KINDS = {
    "mamba": (MambaConfig, MambaForCausalLM),
    "falcon": (FalconMambaConfig, FalconMambaForCausalLM),
}
TINY = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make(kind="mamba", dtype=torch.float32, seed=0, **fields):
    """A small model in evaluation whose every weight matters: first weights are larger than usual."""
    torch.manual_seed(seed)
    config, model = KINDS[kind]
    model = model(config(**(TINY | fields)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("_proj.weight", "embeddings.weight")):
                weight.normal_(0, weight.shape[-1] ** -0.5)
            elif name.endswith(("conv1d.bias", "in_proj.bias", "out_proj.bias", "mixer.D")):
                weight.normal_(0, 0.5)
    return model.to(dtype).eval()


def pair(kind="mamba", dtype=torch.float32, **fields):
    """The model as Transformers computes it, and a copy of it as nonet does."""
    slow = make(kind, dtype, **fields)
    return slow, nonet.accelerate(copy.deepcopy(slow))


def cached(cache):
    """A cache as the argument of a Mamba model in the installed version of Transformers."""
    return cache_argument(MambaForCausalLM.forward, cache)


def tokens(rows=2, length=23, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, TINY["vocab_size"], (rows, length), generator=generator)


def mixers(model):
    return [module for module in model.modules() if hasattr(module, "A_log")]


def assert_same(actual, expected, name="result"):
    """Equal to the rounding of float32, in which the norms of these models are computed in every dtype."""
    scale = expected.abs().max().item()
    actual, gold = actual.detach(), expected.detach().double()
    assert_within_budget(actual.float(), gold.float(), gold, name, scale=4 * scale)


def assert_states(cache, other, name="state"):
    assert len(cache.layers) == len(other.layers) > 0
    for i in range(len(cache.layers)):
        for get in ("get_conv_state", "get_recurrent_state"):
            ours, theirs = getattr(cache, get)(i), getattr(other, get)(i)
            assert ours.dtype == theirs.dtype
            assert_same(ours, theirs, f"{name} {i}, {get}")
