"""Trained prompts and PEFT: files in both directions, the same encoders, the same logits."""

import json
import sys
from pathlib import Path

import peft
import pytest
import torch
from hf_models import assert_same
from peft import PeftModel, PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from nonet.prompt import PrefixTuning, PromptTuning, PTuning, add_prompt, remove_prompt
from nonet.prompt.encoder import PrefixMLP, PromptEncoder
from nonet.prompt.saved import from_peft, to_peft

# PEFT calls models by the older name of their cache.
pytestmark = pytest.mark.filterwarnings("ignore:`past_key_values` is deprecated:FutureWarning")

P = 3
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
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "wide heads": (MistralForCausalLM, MistralConfig, {"num_key_value_heads": 2, "head_dim": 32}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {}),
}
OURS = {
    "prompt": PromptTuning(length=P),
    "mlp": PTuning(length=P, hidden=16),
    "lstm": PTuning(length=P, encoder="lstm", hidden=8, layers=1),
    "prefix": PrefixTuning(length=P),
    "prefix mlp": PrefixTuning(length=P, hidden=16),
}
_OF_PEFT = {"task_type": "CAUSAL_LM", "num_virtual_tokens": P}
THEIRS = {
    "prompt": PromptTuningConfig(**_OF_PEFT, prompt_tuning_init="SAMPLE_VOCAB"),
    "mlp": PromptEncoderConfig(**_OF_PEFT, encoder_hidden_size=16),
    "lstm": PromptEncoderConfig(
        **_OF_PEFT, encoder_reparameterization_type="LSTM", encoder_hidden_size=8, encoder_num_layers=1
    ),
    "prefix": PrefixTuningConfig(**_OF_PEFT),
    "prefix mlp": PrefixTuningConfig(**_OF_PEFT, prefix_projection=True, encoder_hidden_size=16),
}


def make(kind="llama", dtype=torch.float64):
    torch.manual_seed(0)
    model, config, fields = MODELS[kind]
    return model(config(**(TINY | fields))).to(dtype).eval()


def tokens():
    return torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))


def write(folder, model):
    """What our model gives, as the two files of PEFT."""
    config, tensors = to_peft(model)
    Path(folder, "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, Path(folder, "adapter_model.safetensors"), metadata={"format": "pt"})


def read(folder, model):
    """Our model with the prompt of PEFT's two files."""
    config = json.loads(Path(folder, "adapter_config.json").read_text(encoding="utf-8"))
    return from_peft(model, config, load_file(Path(folder, "adapter_model.safetensors")))


def logits(model, ids=None, **kwargs):
    """Logits of tokens; PEFT gives those of a prompt before them, too."""
    ids = tokens() if ids is None else ids
    with torch.no_grad():
        return model(input_ids=ids, **kwargs).logits[:, -ids.shape[1] :]


def theirs(kind, prompt, dtype=torch.float64):
    torch.manual_seed(1)
    return (
        get_peft_model(make(kind, dtype), type(THEIRS[prompt])(**THEIRS[prompt].to_dict())).to(dtype).eval()
    )


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("prompt", OURS)
def test_peft_reads_ours(kind, prompt, tmp_path):
    model = add_prompt(make(kind), OURS[prompt])
    write(tmp_path, model)
    other = PeftModel.from_pretrained(make(kind), tmp_path).double().eval()
    assert_same(logits(other), logits(model), "logits")
    assert not torch.equal(logits(model), logits(remove_prompt(model)))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("prompt", THEIRS)
def test_we_read_peft_s(kind, prompt, tmp_path):
    other = theirs(kind, prompt)
    other.save_pretrained(tmp_path)
    model = read(tmp_path, make(kind))
    assert_same(logits(model), logits(other), "logits")
    mask = torch.ones(2, 9, dtype=torch.long)
    assert_same(logits(model, attention_mask=mask), logits(other, attention_mask=mask), "with a mask")


@pytest.mark.parametrize("prompt", OURS)
def test_generation_is_peft_s(prompt, tmp_path):
    """PEFT reads the whole text for every token: its cache is lost in Transformers 5.24."""
    model = add_prompt(make(), OURS[prompt])
    write(tmp_path, model)
    other, ids = PeftModel.from_pretrained(make(), tmp_path).double().eval(), tokens()
    for _ in range(6):
        ids = torch.cat([ids, logits(other, ids)[:, -1:].argmax(-1)], 1)
    ways = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    assert torch.equal(model.generate(tokens(), eos_token_id=-1, **ways), ids)


@pytest.mark.parametrize("prompt", ["prompt", "prefix"])
def test_the_loss_is_peft_s(prompt, tmp_path):
    other = theirs("llama", prompt)
    other.save_pretrained(tmp_path)
    model = read(tmp_path, make())
    ids, labels = tokens(), tokens()
    labels[:, 0] = -100  # which PEFT would predict from a prompt, but not from a prefix
    assert_same(model(ids, labels=labels).loss, other(input_ids=ids, labels=labels).loss, "loss")


@pytest.mark.parametrize("prompt", OURS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read(prompt, dtype, tmp_path):
    model = add_prompt(make(dtype=dtype), OURS[prompt])
    write(tmp_path, model)
    again = read(tmp_path, make(dtype=dtype))
    with torch.no_grad():  # an LSTM has another rounding with gradients
        assert torch.equal(again.soft_prompt.encoder(), model.soft_prompt.encoder())
    assert torch.equal(logits(again), logits(model))
    assert list(dict(again.soft_prompt.named_parameters())) == ["encoder.weight"]
    assert again.soft_prompt.encoder.weight.requires_grad
    write(tmp_path, again)
    assert torch.equal(logits(read(tmp_path, make(dtype=dtype))), logits(model))


@pytest.mark.parametrize("prompt", OURS)
def test_the_file_has_peft_s_fields_and_key(prompt, tmp_path):
    theirs("llama", prompt).save_pretrained(tmp_path)
    saved = json.loads(Path(tmp_path, "adapter_config.json").read_text(encoding="utf-8"))
    config, tensors = to_peft(add_prompt(make(), OURS[prompt]))
    assert set(config) == set(saved) - {"peft_version"}  # PEFT puts its own there
    sizes = ("peft_type", "task_type", "num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads")
    assert [config[name] for name in sizes] == [saved[name] for name in sizes]
    kept = load_file(Path(tmp_path, "adapter_model.safetensors"))
    assert {name: t.shape for name, t in tensors.items()} == {name: t.shape for name, t in kept.items()}


def test_the_prompt_encoder_is_peft_s():
    for prompt, layers in (("mlp", 0), ("lstm", 1)):
        encoder = theirs("llama", prompt).prompt_encoder["default"]
        own = PromptEncoder(P, 64, 16 if prompt == "mlp" else 8, layers).double()
        own.embedding.load_state_dict(encoder.embedding.state_dict())
        own.mlp.load_state_dict(encoder.mlp_head.state_dict())
        if layers:
            own.lstm.load_state_dict(encoder.lstm_head.state_dict())
        assert torch.equal(own(), encoder(torch.arange(P)[None])[0])


def test_the_prefix_encoder_is_peft_s():
    encoder = theirs("gpt2", "prefix mlp").prompt_encoder["default"]
    own = PrefixMLP(P, 64, 16, 2 * 2 * 64).double()
    own.embedding.load_state_dict(encoder.embedding.state_dict())
    own.first.load_state_dict(encoder.transform[0].state_dict())
    own.last.load_state_dict(encoder.transform[2].state_dict())
    whole = encoder(torch.arange(P))
    assert torch.equal(own(), whole)
    assert_same(own(slice(64, 128)), whole[:, 64:128])


def test_a_row_with_left_padding_is_the_row_alone_here():
    """PEFT counts positions through the padding, which is why its padded rows are not held against ours."""
    model = add_prompt(make(), OURS["prompt"])
    ids = tokens()
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    alone = model(ids[:1, 4:]).logits[0]
    assert_same(model(ids, attention_mask=mask).logits[0, 4:], alone)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "LORA"}, "peft_type='LORA' is no prompt that is read; choose from PROMPT_TUNING"),
        ({"peft_type": None}, "peft_type=None"),
        ({"task_type": "SEQ_CLS"}, "task_type='SEQ_CLS' in the file is not served"),
        ({"num_transformer_submodules": 2}, "num_transformer_submodules=2"),
        ({"num_layers": 3}, "num_layers=3 in the file is not served here; it must be None or 2"),
        ({"token_dim": 32}, "token_dim=32"),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save=\['lm_head'\] in the file is not known"),
        ({"num_ranks": 4}, "num_ranks=4 in the file is not known"),
        ({"num_virtual_tokens": 4}, r"shape \(4, 64\) for this model; got \(3, 64\)"),
    ],
)
def test_fields_that_are_not_served_are_refused(change, message):
    config, tensors = to_peft(add_prompt(make(), OURS["prompt"]))
    model = make()
    with pytest.raises(ValueError, match=message):
        from_peft(model, config | change, tensors)
    assert not hasattr(model, "soft_prompt")
    from_peft(model, config | {"a_field_of_tomorrow": None, "encoder_dropout": 0.1}, tensors)


def test_tensors_that_do_not_fit_are_refused():
    config, tensors = to_peft(add_prompt(make(), OURS["prefix"]))
    with pytest.raises(ValueError, match="the tensor prompt_embeddings alone; got none"):
        from_peft(make(), config, {})
    with pytest.raises(ValueError, match=r"alone; got prompt_embeddings, score\.weight"):
        from_peft(make(), config, tensors | {"score.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"must have the shape \(3, 128\) for this model; got \(3, 64\)"):
        from_peft(make(), config, {"prompt_embeddings": torch.ones(3, 64)})


def test_what_cannot_be_written_is_refused():
    with pytest.raises(ValueError, match="model has no prompt"):
        to_peft(make())
    model = add_prompt(make("gpt2"), OURS["prompt"])
    model.transformer.ln_f.requires_grad_(True)
    with pytest.raises(
        ValueError, match=r"beside the prompt: transformer.ln_f.weight, transformer.ln_f.bias"
    ):
        to_peft(model)
    masked = add_prompt(BertForMaskedLM(BertConfig(**TINY)), OURS["prompt"])
    with pytest.raises(ValueError, match="causal language models are written; got BertForMaskedLM"):
        to_peft(masked)


def test_peft_is_not_needed():
    """PEFT is a third source here, and nothing of it is used by the library."""
    source = Path(sys.modules["nonet.prompt.saved"].__file__).parent
    assert peft.__version__
    assert not [f.name for f in source.glob("*.py") if "import peft" in f.read_text(encoding="utf-8")]
