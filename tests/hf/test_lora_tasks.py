"""Models for classification and question answering: their heads are trained, saved and read as PEFT's are."""

import copy
import json

import peft
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForQuestionAnswering,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    RobertaConfig,
    RobertaForTokenClassification,
    T5Config,
    T5ForSequenceClassification,
)

import nonet
from nonet.hf import load_adapter, save_adapter
from nonet.lora import LoraConfig, add_lora, merge_lora, remove_lora, select_lora
from nonet.testing import assert_within_rounding

SIZES = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 48, "pad_token_id": 0, "initializer_range": 0.2}
BERT = {**SIZES, "max_position_embeddings": 40}
GPT2 = {
    "vocab_size": 61,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
DISTIL = {
    "vocab_size": 61,
    "dim": 32,
    "n_layers": 2,
    "n_heads": 4,
    "hidden_dim": 48,
    "initializer_range": 0.2,
}
T5 = {
    "vocab_size": 61,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
OURS = {**SIZES, "pattern": "F", "is_causal": False}
# What a model is, what PEFT calls its task, and which modules are its head.
MODELS = {
    "llama": (LlamaForSequenceClassification, LlamaConfig(**SIZES), "SEQ_CLS", ["score"]),
    "llama tokens": (LlamaForTokenClassification, LlamaConfig(**SIZES), "TOKEN_CLS", ["score"]),
    "llama answers": (LlamaForQuestionAnswering, LlamaConfig(**SIZES), "QUESTION_ANS", ["qa_outputs"]),
    "gpt2": (GPT2ForSequenceClassification, GPT2Config(**GPT2), "SEQ_CLS", ["score"]),
    "bert answers": (BertForQuestionAnswering, BertConfig(**BERT), "QUESTION_ANS", ["qa_outputs"]),
    "roberta tokens": (RobertaForTokenClassification, RobertaConfig(**BERT), "TOKEN_CLS", ["classifier"]),
    "distilbert": (
        DistilBertForSequenceClassification,
        DistilBertConfig(**DISTIL),
        "SEQ_CLS",
        ["pre_classifier", "classifier"],
    ),
    "t5": (T5ForSequenceClassification, T5Config(**T5), "SEQ_CLS", ["classification_head"]),
    "nonet": (nonet.NonetForSequenceClassification, nonet.NonetConfig(**OURS), "SEQ_CLS", ["score"]),
}
HEADED = {**MODELS, "choice": (BertForMultipleChoice, BertConfig(**BERT), None, ["classifier"])}
# "all-linear" reaches the heads of PEFT's token and answer models too, which it then refuses to train.
INNER = {"gpt2": ["c_attn"], "bert answers": ["query", "dense"], "roberta tokens": ["query", "value"]}
INNER |= {"distilbert": ["q_lin", "lin1"], "t5": ["q", "wo"]}
every_model = pytest.mark.parametrize("kind", HEADED)
pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False")


def make(kind, head=0):
    """The base with a head of its own, as a task model out of a base checkpoint has."""
    torch.manual_seed(1)
    model = HEADED[kind][0](HEADED[kind][1]).eval()
    generator = torch.Generator().manual_seed(head)
    with torch.no_grad():
        for name in HEADED[kind][3]:
            for p in model.get_submodule(name).parameters():
                p.copy_(torch.randn(p.shape, generator=generator))
    return model


def train(model):
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator)
    return model.eval()


def outputs(model):
    ids = torch.randint(2, 61, (2, 9), generator=torch.Generator().manual_seed(0))
    ids[:, -1] = 1  # T5 reads its last token
    ids = ids[:, None].repeat(1, 3, 1) if "MultipleChoice" in str(type(model)) else ids
    with torch.no_grad():
        out = model(input_ids=ids)
    return out.logits if "logits" in out else torch.stack([out.start_logits, out.end_logits])


def assert_as(found, model, name):
    """The outputs that a model gives in float64, but for the roundings of float32."""
    wide = copy.deepcopy(model).double()
    assert_within_rounding(found, lambda: outputs(wide), name)


@every_model
def test_a_head_is_trained_and_saved_with_its_adapter(kind, tmp_path):
    model = train(add_lora(make(kind), LoraConfig(rank=2)))
    head = HEADED[kind][3]
    assert list(model.nonet_lora.full["default"]) == head
    whole = {name for name, p in model.named_parameters() if p.requires_grad and ".lora." not in name}
    assert whole == {name for name, _ in make(kind).named_parameters() if name.split(".")[0] in head}
    config = json.loads((save_adapter(model, tmp_path) / "adapter_config.json").read_text())
    assert config["task_type"] == HEADED[kind][2]
    assert config["modules_to_save"] == head
    other = make(kind, head=5)
    assert not torch.equal(outputs(other), outputs(make(kind)))
    assert torch.equal(outputs(load_adapter(other, tmp_path)), outputs(model))
    theirs = peft.PeftModel.from_pretrained(make(kind, head=5), tmp_path).eval()
    assert_as(outputs(theirs.get_base_model()), model, "in PEFT")


@pytest.mark.parametrize("kind", MODELS)
def test_a_head_that_peft_saved_is_read(kind, tmp_path):
    _, _, task, head = MODELS[kind]
    given = {"modules_to_save": [*head]} if kind == "t5" else {}  # whose head PEFT does not know
    config = peft.LoraConfig(
        r=2, task_type=task, target_modules=INNER.get(kind, ["q_proj", "up_proj"]), **given
    )
    theirs = train(peft.get_peft_model(make(kind), config))
    theirs.save_pretrained(tmp_path)
    model = load_adapter(make(kind, head=5), tmp_path)
    assert list(model.nonet_lora.full["default"]) == head
    assert_as(outputs(model), theirs.get_base_model(), "PEFT's")


def test_what_is_trained_is_what_peft_trains():
    for kind, (_, _, task, _) in MODELS.items():
        if kind == "t5":  # whose head PEFT does not know
            continue
        inner = INNER.get(kind, ["q_proj", "up_proj"])
        theirs = peft.get_peft_model(
            make(kind), peft.LoraConfig(r=2, task_type=task, target_modules=[*inner])
        )
        model = add_lora(make(kind), LoraConfig(rank=2, targets=inner))
        count = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (model, theirs)]
        assert count[0] == count[1], kind


@pytest.mark.parametrize(
    ("full", "trained"), [((), set()), (["model.norm"], {"model.norm.weight"}), (None, {"score.weight"})]
)
def test_the_user_may_say_otherwise(full, trained, tmp_path):
    model = add_lora(make("llama"), LoraConfig(rank=2, targets=["q_proj"], full=full))
    assert {n for n, p in model.named_parameters() if p.requires_grad and ".lora." not in n} == trained
    config = json.loads((save_adapter(train(model), tmp_path) / "adapter_config.json").read_text())
    assert config["task_type"] == ("SEQ_CLS" if full is None else None)
    assert torch.equal(outputs(load_adapter(make("llama"), tmp_path)), outputs(model))
    theirs = peft.PeftModel.from_pretrained(make("llama"), tmp_path).eval()
    assert_as(outputs(theirs), model, "in PEFT")


def test_a_head_gets_factors_where_it_is_asked_not_to_be_trained_in_full():
    with pytest.raises(
        ValueError, match="targets names 'score', which is trained in full and gets no factors"
    ):
        add_lora(make("llama"), LoraConfig(targets=["q_proj", "score"]))
    model = add_lora(make("llama"), LoraConfig(targets=["q_proj", "score"], full=()))
    assert hasattr(model.score, "lora")


def test_each_adapter_has_a_head_of_its_own():
    model, names = make("llama"), ("one", "two")
    expected = {}
    for name in names:
        train(add_lora(model, LoraConfig(rank=2), name))
        expected[name] = outputs(model)
    for name in reversed(names):
        select_lora(model, name)
        assert torch.equal(outputs(model), expected[name])
    assert_as(outputs(merge_lora(copy.deepcopy(model))), model, "merged")
    assert torch.equal(outputs(remove_lora(model)), outputs(make("llama")))


@pytest.mark.parametrize(
    "model",
    [
        lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        lambda: BertForMaskedLM(BertConfig(**BERT)),
        lambda: BertModel(BertConfig(**BERT)),
    ],
)
def test_models_that_are_whole_in_a_base_checkpoint_have_no_head(model):
    adapted = add_lora(model(), LoraConfig(rank=2))
    assert adapted.nonet_lora.full == {"default": ()}


def test_what_is_trained_beside_an_adapter_is_not_lost_in_silence(tmp_path):
    model = add_lora(make("llama"), LoraConfig(rank=2, full=()))
    model.score.requires_grad_(True)
    with pytest.raises(
        ValueError, match=r"score\.weight is trained beside the adapters.*name its module in full"
    ):
        save_adapter(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    model.score.requires_grad_(False)
    save_adapter(model, tmp_path / "a")
