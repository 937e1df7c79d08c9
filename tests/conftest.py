"""What holds for every test: no network, no telemetry, fixed seeds."""

import gc
import os
import random
import signal

# Set before anything imports a library that reads them.
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", DO_NOT_TRACK="1")
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores between them
    os.environ["OMP_NUM_THREADS"] = "1"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts jobs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or programs under test would inherit it

import numpy as np
import pytest
import torch


def pytest_collection_modifyitems(items):
    """Begins with the site: it is built by one process, beside which the others go on."""
    items.sort(key=lambda item: item.path.name != "test_site.py")


def pytest_collection_finish():
    """Takes what is there by now, a million objects that stay, out of what is searched for garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fixed_seeds():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Keeps what tests encode and convert out of the user's cache, and in one folder for all workers."""
    place = tmp_path_factory.getbasetemp()
    place = place.parent if "PYTEST_XDIST_WORKER" in os.environ else place
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NONET_CACHE", str(place / "cache"))
        yield


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A directory with a tiny model and a tokenizer of bytes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from nonet.data import byte_tokenizer

    place = tmp_path_factory.mktemp("models") / "tiny"
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


@pytest.fixture(scope="session")
def chat_tokenizer():
    """Bytes, with a first token that every text gets, and a chat template."""
    from tokenizers.processors import TemplateProcessing

    from nonet.data import byte_tokenizer

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    first = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=first)
    tokenizer.split_special_tokens = False
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return tokenizer


@pytest.fixture(scope="session")
def chat_model(chat_tokenizer, tmp_path_factory):
    """A directory with a tiny GPT-2, which has 64 positions and dropout, and that tokenizer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    place = tmp_path_factory.mktemp("models") / "chat"
    torch.manual_seed(0)
    ends = {"bos_token_id": 257, "eos_token_id": 256, "pad_token_id": 256}
    GPT2LMHeadModel(
        GPT2Config(vocab_size=258, n_positions=64, n_embd=32, n_layer=2, n_head=2, **ends)
    ).save_pretrained(place)
    chat_tokenizer.save_pretrained(place)
    return place
