"""Tiny models of many families of Transformers, each of which puts its parts together in its own way."""

import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

V = 61
# Configurations call the same sizes by other names; each takes those that it knows.
SIZES = {
    "vocab_size": V,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "word_embed_proj_dim"), 32),
    **dict.fromkeys(("attention_hidden_size", "lru_width"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("decoder_layers", "encoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("decoder_attention_heads", "encoder_attention_heads"), 4),
    "num_key_value_heads": 2,
    **dict.fromkeys(("head_dim", "d_kv", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "hidden_dim", "d_ff", "ffn_hidden_size"), 48),
    **dict.fromkeys(("decoder_ffn_dim", "encoder_ffn_dim"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    **dict.fromkeys(("n_group", "topk_group", "mamba_n_groups"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("state_size", "mamba_d_state", "mamba_n_heads", "mamba_d_head"), 8),
    "mamba_d_ssm": 64,
    **dict.fromkeys(("linear_num_value_heads", "linear_num_key_heads"), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    "sliding_window": 8,
    "type_vocab_size": 2,
    "is_decoder": True,
}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
CAUSAL = {
    "bamba": {"attn_layer_indices": [1]},
    "bart": {},
    "bert": {},
    "bloom": {},
    "codegen": {"rotary_dim": 4},
    "cohere2": {},
    "deepseek_v3": {"num_key_value_heads": 4},
    "ernie4_5": {},
    "exaone4": {},
    "falcon": {},
    "falcon_h1": {},
    "falcon_mamba": {},
    "gemma": {},
    "gemma2": {},
    "gemma3_text": {},
    "glm4": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 8},
    "gpt_neox": {},
    "gpt_oss": {},
    "gptj": {"rotary_dim": 4},
    "granite": {},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "jamba": {
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "llama": {},
    "mamba": {},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1},
    "mistral": {},
    "mixtral": {},
    "modernbert-decoder": {},
    "mpt": {},
    "nemotron_h": {},
    "olmo2": {},
    "openai-gpt": {},
    "opt": {"word_embed_proj_dim": 16},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen2_moe": {},
    "qwen3": {},
    "qwen3_next": _LINEAR,
    "recurrent_gemma": {"block_types": ("recurrent", "attention"), "attention_window_size": 8},
    "roberta": {},
    "roformer": {},
    "rwkv": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
    "whisper": {},
    "xglm": {},
    "xlnet": {},
}
MASKED = {
    "albert": {},
    "bert": {},
    "big_bird": {},
    "camembert": {},
    "deberta-v2": {},
    "distilbert": {},
    "electra": {},
    "esm": {},
    "convbert": {},
    "modernbert": {},
    "mpnet": {},
    "rembert": {},
    "roberta": {},
    "squeezebert": {},
}


# Families that may be refused: their memory is no cache of tokens, or their attention takes no prefix.
NO_PROMPT = {"falcon_mamba", "mamba", "mamba2", "rwkv", "xlnet"}
NO_PREFIX = NO_PROMPT | {
    *(
        "bamba",
        "bart",
        "bloom",
        "deepseek_v3",
        "falcon",
        "gpt_neo",
        "granitemoehybrid",
        "jamba",
        "lfm2",
        "mpt",
    ),
    *("nemotron_h", "openai-gpt", "qwen3_next", "recurrent_gemma", "roformer"),
}
NO_DRAFT = {"openai-gpt", "recurrent_gemma", "rwkv", "xlnet"}
NO_MASKED_PROMPT = {"big_bird", "esm", "squeezebert"}


def make(family, causal=True, seed=0):
    """A tiny model of a family in evaluation, with weights that are larger than usual, so that all matter."""
    kind = CONFIG_MAPPING[family]
    names = {*kind().to_dict(), *vars(kind())} - {*getattr(kind, "attribute_map", {})}
    sizes = {name: size for name, size in SIZES.items() if name in names}
    if not causal:
        sizes.pop("is_decoder", None)
    config = kind(**(sizes | (CAUSAL if causal else MASKED)[family]))
    torch.manual_seed(seed)
    model = (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.mul_(3)
    if causal:
        model.generation_config.eos_token_id = None
    return model


def tokens(length=12, seed=0):
    return torch.randint(3, V, (1, length), generator=torch.Generator().manual_seed(seed))
