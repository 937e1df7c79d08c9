"""Tiny models and tokenizers that the tests of PET share."""

import random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from nonet.model import NonetConfig, NonetForCausalLM

PLACES = 64
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FILLER = ["a", "the", "cat", "dog", "bird", "red", "blue", "green", "today"]
WORDS = " ".join([*FILLER, "sun rain runs sleeps sings well it was all in news good bad fine poor"])


def word_tokenizer():
    """One token a word, and the special tokens of BERT."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS.split(), ".", ",", "?", ":", "(", ")"])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    )
    names = {f"{name.strip('[]').lower()}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


def byte_tokenizer(bos=False):
    """Bytes joined by what is frequent, as in GPT-2; known words are one token with the space before them."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<pad>", "<s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([f" {WORDS} It was" for _ in range(20)], trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>")


def bert(vocab_size, **options):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=PLACES,
        **{"num_hidden_layers": 2, "initializer_range": 0.2, **options},
    )
    return BertForMaskedLM(config).eval()


def llama(vocab_size, **options):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        max_position_embeddings=PLACES,
        **{"num_hidden_layers": 2, "initializer_range": 0.2, **options},
    )
    return LlamaForCausalLM(config).eval()


def gpt2(vocab_size):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=PLACES, initializer_range=0.2
    )
    return GPT2LMHeadModel(config).eval()


def nonet(vocab_size):
    torch.manual_seed(0)
    config = NonetConfig(
        vocab_size=vocab_size, hidden_size=64, num_hidden_layers=2, max_position_embeddings=PLACES
    )
    return NonetForCausalLM(config).eval()


def sentences(count, seed=0):
    """Texts of several lengths, and their label: whether the sun is in them, or the rain."""
    chance = random.Random(seed)
    texts, labels = [], []
    for i in range(count):
        words = chance.choices(FILLER, k=chance.randint(2, 9))
        words.insert(chance.randint(0, len(words)), "sun" if i % 2 else "rain")
        texts.append(" ".join(words))
        labels.append("up" if i % 2 else "down")
    return texts, labels
