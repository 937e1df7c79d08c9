import torch
from transformers import LlamaConfig, LlamaForCausalLM

from nonet.compare.plan import Work
from nonet.data import byte_tokenizer, encode_corpus, load_corpus


def make_work(source=None, **changes):
    """A comparison that takes a second or two a cell."""
    fields = {
        "source": source,
        "tokenizer": "bytes",
        "fingerprint": "0" * 32 if source is None else encode_corpus(load_corpus(source)).folder.name,
        "vocab_size": 257,
        "size": "tiny",
        "model": "",
        "layers": 0,
        "window": 32,
        "tokens": 32 * 4 * 6,
        "batch": 4,
        "evaluations": 2,
        "validation_windows": 4,
        "lengths": (16, 64),
        "contexts": (8, 48),
        "places": 128,
        "tasks": ("associative_recall", "selective_copying", "induction_heads", "duplication"),
        "task_length": 32,
        "task_steps": 2,
        "blocks": (),
        "texts": 0,
        "new": 0,
        "repeats": 2,
        "threads": 1,
        "device": "cpu",
    }
    return Work(**{**fields, **changes})


def write_text(path, lines=800):
    path.write_text("".join(f"line {i}: the quick brown fox jumps over the lazy dog\n" for i in range(lines)))
    return str(path)


def make_work_around(model, source, **changes):
    """The same around a pretrained model, a directory."""
    fields = {
        "size": "",
        "model": str(model),
        "layers": 1,
        "fingerprint": encode_corpus(load_corpus(source), byte_tokenizer()).folder.name,
        "lengths": (),
        "contexts": (8,),
        "places": 0,
        "tasks": (),
        "blocks": (2, 4),
        "texts": 2,
        "new": 8,
    }
    return make_work(source, **{**fields, **changes})


def write_model(place):
    """A directory with a tiny model and a tokenizer of bytes."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=256,
        eos_token_id=256,
        pad_token_id=256,
    )
    LlamaForCausalLM(config).save_pretrained(place)
    byte_tokenizer().save_pretrained(place)
    return place
