"""How many tokens a model has positions for: found without running it, and true."""

import pytest
import torch
import transformers

from nonet.hf.positions import check_room, room
from nonet.model import NonetConfig, NonetForCausalLM
from nonet.prompt import PrefixTuning, PromptTuning, add_prompt

SIZES = {"vocab_size": 64, "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
LLAMA = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
BART = {"d_model": 32, "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
GPT = {"n_embd": 32, "n_layer": 1, "n_head": 4}
FAMILIES = {
    "GPT2": (16, GPT | {"n_positions": 16}),
    "GPTBigCode": (16, GPT | {"n_positions": 16}),
    "GPTNeo": (
        16,
        {"hidden_size": 32, "num_layers": 1, "num_heads": 4, "attention_types": [[["global"], 1]]}
        | {"max_position_embeddings": 16},
    ),
    "OpenAIGPT": (16, GPT | {"n_positions": 16}),
    "GPTJ": (16, GPT | {"n_positions": 16, "rotary_dim": 4}),
    "CodeGen": (16, GPT | {"n_positions": 16, "n_ctx": 16, "rotary_dim": 4}),
    "CTRL": (16, GPT | {"n_positions": 16, "dff": 48}),
    "OPT": (
        16,
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "ffn_dim": 48}
        | {"word_embed_proj_dim": 32, "max_position_embeddings": 16},
    ),
    "Bart": (16, BART | {"max_position_embeddings": 16}),
    "Marian": (16, BART | {"max_position_embeddings": 16, "decoder_start_token_id": 2}),
    "Roberta": (14, LLAMA | {"max_position_embeddings": 16, "is_decoder": True}),
    "Bert": (16, LLAMA | {"max_position_embeddings": 16, "is_decoder": True}),
    "Mpt": (16, {"d_model": 32, "n_layers": 1, "n_heads": 4, "max_seq_len": 16}),
    "Llama": (None, LLAMA | {"max_position_embeddings": 16}),
    "Bloom": (None, {"hidden_size": 32, "n_layer": 1, "n_head": 4}),
    "XGLM": (
        None,
        {"d_model": 32, "num_layers": 1, "attention_heads": 4, "ffn_dim": 48, "max_position_embeddings": 16},
    ),
    "Mamba": (None, {"hidden_size": 32, "num_hidden_layers": 1, "state_size": 4}),
}
HEADS = {"Bert": "BertLMHeadModel", "GPT2": "GPT2LMHeadModel", "CTRL": "CTRLLMHeadModel"}
HEADS |= {"OpenAIGPT": "OpenAIGPTLMHeadModel"}


def make(family):
    most, fields = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**SIZES, **fields)
    return most, getattr(transformers, HEADS.get(family, f"{family}ForCausalLM"))(config).eval()


@torch.no_grad()
def read(model, length):
    model(input_ids=torch.full((1, length), 5), use_cache=False)


def assert_true(model, most):
    assert room(model) == most
    if most is None:
        read(model, 60)
        return
    read(model, most)
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        read(model, most + 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_found_is_what_a_model_reads(family):
    most, model = make(family)
    assert_true(model, most)


@pytest.mark.parametrize(
    ("position", "most"),
    [("rope", None), ("alibi", None), ("none", None), ("sinusoidal", None), ("learned", 14), ("axial", 16)],
)
def test_every_position_of_our_own_says_where_it_ends(position, most):
    config = NonetConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, max_position_embeddings=14, position=position
    )
    assert_true(NonetForCausalLM(config).eval(), most)


@pytest.mark.parametrize("prompt", [PromptTuning(length=5), PrefixTuning(length=5)])
def test_a_soft_prompt_takes_up_positions(prompt):
    _, model = make("GPT2")
    add_prompt(model, prompt)
    assert_true(model, 11)
    check_room(model, 11, "window")
    with pytest.raises(
        ValueError, match=r"window=12 is .* ends after 11 tokens, beside the 5 virtual tokens"
    ):
        check_room(model, 12, "window")
