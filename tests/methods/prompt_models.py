"""Small models with every kind of trained prompt, and what the plain model gives for the same prompt."""

import copy

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from nonet.ecosystem import CACHE
from nonet.model import NonetConfig, NonetForCausalLM
from nonet.prompt import PrefixTuning, PromptTuning, PTuning, add_prompt
from nonet.registry import parts
from nonet.testing import assert_within_budget

P = 3
INPUT = {
    "prompt": PromptTuning(length=P, start="random"),
    "mlp": PTuning(length=P, hidden=16),
    "lstm": PTuning(length=P, encoder="lstm", hidden=8),
}
PREFIX = {"prefix": PrefixTuning(length=P), "prefix mlp": PrefixTuning(length=P, hidden=16)}
PROMPTS = INPUT | PREFIX

TINY = {
    "vocab_size": 61,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = TINY | {"num_key_value_heads": 2}
BERT = TINY | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
HYBRID = "".join(
    next(p.letter for p in parts("mixer") if p.causal and p.recurrent is kind) for kind in (False, True)
)
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, GROUPED),
    "gpt2": (
        GPT2LMHeadModel,
        GPT2Config,
        TINY | dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    ),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, GROUPED),
    "mistral": (MistralForCausalLM, MistralConfig, GROUPED | {"sliding_window": 5, "head_dim": 16}),
    "nonet": (NonetForCausalLM, NonetConfig, GROUPED | {"pattern": HYBRID}),
    "bert": (BertForMaskedLM, BertConfig, BERT),
    "roberta": (RobertaForMaskedLM, RobertaConfig, BERT | {"pad_token_id": 1, "bos_token_id": 0}),
    "bert classifier": (BertForSequenceClassification, BertConfig, BERT | {"num_labels": 3}),
    "llama classifier": (LlamaForSequenceClassification, LlamaConfig, GROUPED | {"num_labels": 3}),
}


def make(kind="llama", dtype=torch.float64, seed=0, **fields):
    torch.manual_seed(seed)
    model, config, tiny = MODELS[kind]
    return model(config(**(tiny | fields))).to(dtype).eval()


def pair(kind="llama", prompt="prompt", dtype=torch.float64, **fields):
    """The plain model, and a copy of it with a prompt."""
    bare = make(kind, dtype, **fields)
    return bare, add_prompt(copy.deepcopy(bare), PROMPTS[prompt])


def tokens(rows=2, length=9, seed=0):
    return torch.randint(3, 61, (rows, length), generator=torch.Generator().manual_seed(seed))


def padded(rows, side="left", pad=0):
    """Rows of several lengths as one batch with its mask."""
    length = max(row.shape[-1] for row in rows)
    ids = torch.full((len(rows), length), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(length - len(row), None) if side == "left" else slice(len(row))
        ids[i, place], mask[i, place] = row, 1
    return ids, mask


def filled_cache(model, rows):
    """A prefix as the cache of tokens before the first, laid out as PEFT does."""
    prompt = model.soft_prompt
    layers = model.config.num_hidden_layers
    kv = prompt.encoder().view(P, layers * 2, prompt.heads, prompt.head_dim).permute(1, 2, 0, 3)
    kv = kv.to(model.dtype)
    cache = DynamicCache()
    for layer in range(layers):
        cache.update(*(kv[2 * layer + i].expand(rows, -1, -1, -1) for i in (0, 1)), layer)
    return cache


def oracle(bare, model, ids, **kwargs):
    """Outputs of the plain model for the prompt of another and tokens without padding."""
    if "Prefix" in type(model.soft_prompt).__name__:
        places = P + torch.arange(ids.shape[1])[None]
        return bare(ids, position_ids=places, **{CACHE: filled_cache(model, len(ids))}, **kwargs)
    x = bare.get_input_embeddings()(ids)
    prompt = model.soft_prompt.encoder().to(x.dtype).expand(len(ids), -1, -1)
    out = bare(inputs_embeds=torch.cat([prompt, x], 1), **kwargs)
    out.logits = out.logits[:, P:]
    return out


def assert_same(actual, expected, name="result"):
    """Equal to the rounding of float32, in which the norms of these models are computed in every dtype."""
    actual, gold = actual.detach(), expected.detach().double()
    scale = gold.abs().max().item() if gold.numel() else 0.0
    assert_within_budget(actual.float(), gold.float(), gold, name, scale=4 * scale)


def learned_tokenizer(model=None, **special):
    """A tokenizer of byte pairs that has read a few lines."""
    lines = [
        "the film was good and the end was good",
        "a bad film with a bad and sad end",
        "science sports",
    ] * 4
    tokenizer = Tokenizer(model or models.BPE(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer if model is None else trainers.WordLevelTrainer
    tokenizer.train_from_iterator(lines, trainer(vocab_size=60, special_tokens=["[PAD]", "[UNK]"]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", **special
    )
