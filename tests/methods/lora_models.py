"""Small models for the tests of adapters, and what is asked of them."""

import copy

import pytest
import torch
from common import normal
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)
from transformers.models.gemma3.modeling_gemma3 import Gemma3TextScaledWordEmbedding
from transformers.pytorch_utils import Conv1D

from nonet.lora import LoraConfig, add_lora

SIZES = {"vocab_size": 61, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 96, "initializer_range": 0.2, "pad_token_id": 0}


def llama(dtype=torch.float32, **fields):
    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, "num_key_value_heads": 2, "attention_bias": True, **fields})
    model = LlamaForCausalLM(config).to(dtype).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_()
    return model


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=61, n_embd=64, n_layer=2, n_head=4, initializer_range=0.2)
    ).eval()


def bert():
    torch.manual_seed(0)
    return BertForMaskedLM(BertConfig(**SIZES, max_position_embeddings=32)).eval()


MODELS = {"llama": llama, "tied llama": lambda: llama(tie_word_embeddings=True), "gpt2": gpt2, "bert": bert}
every_model = pytest.mark.parametrize("kind", MODELS)
OPTIONS = {
    "lora": {},
    "rslora": {"variants": ("rslora",)},
    "dora": {"variants": ("dora",)},
    "pissa": {"variants": ("pissa",)},
    "all": {"variants": ("rslora", "dora", "pissa"), "bias": "all"},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def tokens(rows=2, length=11, seed=0):
    return torch.randint(1, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def train(model, seed=7, size=0.1):
    """Gives everything that is trained other values, the same in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += size * torch.randn(p.shape, generator=generator).to(p.dtype)
    return model


def logits(model, ids=None):
    with torch.no_grad():
        return model(tokens() if ids is None else ids).logits


def exact(model):
    return copy.deepcopy(model).double()


def inside(model):
    """Everything that the model's objects hold, and of which classes they are."""
    return [(type(m), {k: v for k, v in vars(m).items() if k != "nonet_lora"}) for m in model.modules()]


def several():
    model = llama()
    train(add_lora(model, LoraConfig(rank=2), "one"), seed=1)
    train(add_lora(model, LoraConfig(rank=5, targets=("q_proj", "embed_tokens", "down_proj")), "two"), seed=2)
    train(
        add_lora(model, LoraConfig(rank=3, variants=("rslora", "pissa"), targets=("v_proj",)), "three"),
        seed=3,
    )
    return model


# Models of a single module.

IN, OUT, VOCAB = 12, 10, 19


class _Further(nn.Linear):
    """A class of someone's own whose forward pass is that of nn.Linear."""


class OneModule(nn.Module):
    def __init__(self, layer, dtype=torch.float32):
        super().__init__()
        torch.manual_seed(0)
        self.inner = nn.ModuleDict({"layer": layer()})
        with torch.no_grad():
            for p in self.parameters():
                p.normal_()
        self.to(dtype)

    @property
    def layer(self):
        return self.inner["layer"]

    def forward(self, x):
        return self.layer(x)


LINEAR = {
    "Linear": lambda: nn.Linear(IN, OUT),
    "Linear without bias": lambda: nn.Linear(IN, OUT, bias=False),
    "a class derived from it": lambda: _Further(IN, OUT),
    "Conv1D": lambda: Conv1D(OUT, IN),
}
LOOK_UP = {
    "Embedding": lambda: nn.Embedding(VOCAB, OUT, padding_idx=3),
    "scaled Embedding": lambda: Gemma3TextScaledWordEmbedding(VOCAB, OUT, None, embed_scale=2.5),
}
KINDS = {**LINEAR, **LOOK_UP}


def one_module(kind, dtype=torch.float32, name="default", trained=False, **options):
    """A model of one module with an adapter, its factors moved away from their first values if asked."""
    model = OneModule(KINDS[kind], dtype)
    options = {"rank": 3, "alpha": 5.0, "targets": ("layer",), **options}
    add_lora(model, LoraConfig(**options), name)
    if trained:
        train(model, size=0.3)
    return model.eval()


def inputs(kind, dtype=torch.float32):
    if kind in LOOK_UP:
        return torch.randint(VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
    return normal(2, 7, IN, seed=1, dtype=dtype)
