"""A vocabulary that is resized under adapters, and modules that are replaced there."""

import copy

import accelerate.hooks
import pytest
import torch
from lora_models import MODELS, every_model, llama, logits, one_module, tokens, train
from torch import nn

from nonet.lora import LoraConfig, add_lora, from_peft, merge_lora, remove_lora, select_lora, to_peft
from nonet.testing import assert_within_rounding

VOCAB = 61
pytestmark = pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
# Input embedding, output embedding, and a layer between.
ENDS = {
    "llama": ("embed_tokens", "lm_head", "q_proj"),
    "tied llama": ("embed_tokens", "lm_head", "q_proj"),
    "gpt2": ("wte", "lm_head", "c_attn"),
    "bert": ("word_embeddings", "decoder", "query"),
}
OPTIONS = {
    "both": lambda first, last, inner: {"targets": [first, last, inner]},
    "head": lambda first, last, inner: {"targets": [last]},
    "all variants": lambda first, last, inner: {
        "targets": [first, last],
        "variants": ["dora", "pissa", "rslora"],
        "bias": "all",
    },
    "in full": lambda first, last, inner: {"targets": [inner], "full": [last]},
}
every_option = pytest.mark.parametrize("option", OPTIONS.values(), ids=OPTIONS)
sizes = pytest.mark.parametrize("size", [70, 50])
IDS = tokens() % 50


def adapted(kind, option):
    model = MODELS[kind]()
    return train(add_lora(model, LoraConfig(rank=2, **option(*ENDS[kind]))))


@every_model
@every_option
@sizes
def test_adapters_go_along_with_a_vocabulary(kind, option, size):
    model, both = adapted(kind, option), min(size, VOCAB)
    wide = copy.deepcopy(model).double()
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with select_lora(model, None):
        bare = logits(model, IDS)
    assert model.resize_token_embeddings(size) is model.get_input_embeddings()
    found = logits(model, IDS)[..., :both]
    assert_within_rounding(found, lambda: logits(wide, IDS)[..., :both], "logits")
    assert logits(model, IDS).shape[-1] == size
    assert all(p is learned[name] for name, p in model.named_parameters() if p.requires_grad)
    with select_lora(model, None):
        assert torch.equal(logits(model, IDS)[..., :both], bare[..., :both])
    ids = torch.arange(size)[None, -8:]
    model(ids).logits.square().sum().backward()
    grads = {name: p.grad for name, p in learned.items() if "lora" in name or name.endswith("weight")}
    assert all(grad is not None and grad.shape == learned[name].shape for name, grad in grads.items())


@every_model
@every_option
@sizes
def test_a_resized_adapter_is_saved_and_is_at_home_in_a_resized_model(kind, option, size):
    model = adapted(kind, option)
    model.resize_token_embeddings(size)
    wide, (config, tensors) = copy.deepcopy(model).double(), to_peft(model)
    remove_lora(model)
    bare = logits(model, IDS)
    again = logits(from_peft(model, config, tensors), IDS)
    assert_within_rounding(again, lambda: logits(wide, IDS), "logits")
    remove_lora(model)
    other = MODELS[kind]()
    with pytest.raises(
        ValueError, match=rf"has the shape \(.*{size}.*; the model needs \(.*{VOCAB}.*resize_token"
    ):
        from_peft(other, config, tensors)
    assert not hasattr(other, "nonet_lora")
    assert torch.equal(logits(model, IDS), bare)


def test_new_tokens_begin_as_in_the_bare_model():
    model = train(add_lora(llama(), LoraConfig(rank=2, targets=["embed_tokens", "lm_head"])))
    model.resize_token_embeddings(70)
    assert model.model.embed_tokens.lora.default.a[:, VOCAB:].count_nonzero() == 0
    assert model.lm_head.lora.default.b[VOCAB:].count_nonzero() == 0
    assert model.model.embed_tokens.lora.default.a[:, :VOCAB].count_nonzero() > 0
    new, ids = model.model.embed_tokens, torch.tensor([[65, 69]])
    assert torch.equal(new(ids), new.weight[ids])


def test_magnitudes_of_new_tokens_are_the_norms_of_their_rows():
    model = train(add_lora(llama(), LoraConfig(rank=2, targets=["lm_head"], variants=["dora"])))
    magnitude = model.lm_head.lora.default.magnitude.clone()
    model.resize_token_embeddings(70)
    found = model.lm_head.lora.default.magnitude
    assert torch.equal(found[:VOCAB], magnitude)
    rows = model.lm_head.weight[VOCAB:].detach().double()
    assert_within_rounding(found[VOCAB:], lambda: torch.linalg.vector_norm(rows, dim=1), "norms")


def test_every_adapter_goes_along_and_the_selection_stays():
    model = llama()
    for name, options in {
        "one": {"targets": ["lm_head"]},
        "two": {"full": ["lm_head"], "bias": "all"},
    }.items():
        train(add_lora(model, LoraConfig(rank=2, **options), name))
    expected = {}
    for name in ("one", "two"):
        select_lora(model, name)
        expected[name] = logits(model, IDS)
    select_lora(model, ["one", None])
    model.resize_token_embeddings(70)
    assert model.nonet_lora.selected == ("one", None)
    assert torch.equal(logits(model, IDS)[1, :, :VOCAB], logits(llama(), IDS)[1])
    for name in ("one", "two"):
        select_lora(model, name)
        assert torch.equal(logits(model, IDS)[..., :VOCAB], expected[name])


@pytest.mark.parametrize("kind", ["llama", "tied llama"])
def test_a_resized_model_without_its_adapters_is_a_resized_model(kind):
    model, bare = adapted(kind, OPTIONS["both"]), MODELS[kind]()
    model.resize_token_embeddings(50)
    bare.resize_token_embeddings(50)
    remove_lora(model)
    assert torch.equal(logits(model, IDS), logits(bare, IDS))
    assert vars(model).keys() == vars(bare).keys()
    assert [type(m) for m in model.modules()] == [type(m) for m in bare.modules()]
    assert model.config.to_dict() == bare.config.to_dict()
    assert model.resize_token_embeddings(40).weight.shape == (40, 64)


def test_part_of_a_model_is_resized_and_a_copy_resizes_itself():
    model = train(add_lora(llama(), LoraConfig(rank=2, targets=["embed_tokens"])))
    twin = copy.deepcopy(model)
    twin.model.resize_token_embeddings(70)
    assert twin.model.embed_tokens.lora.default.a.shape == (2, 70)
    assert model.model.embed_tokens.lora.default.a.shape == (2, VOCAB)
    assert logits(twin, torch.tensor([[69]])).shape == (1, 1, VOCAB)


def test_a_resizing_that_is_refused_changes_nothing():
    model = train(add_lora(llama(), LoraConfig(rank=2, targets=["lm_head"])))
    out = logits(model)
    with pytest.raises(TypeError):
        model.resize_token_embeddings("many")
    assert torch.equal(logits(model), out)
    accelerate.hooks.add_hook_to_module(model.lm_head, accelerate.hooks.ModelHook())
    with pytest.raises(ValueError, match="first remove the hooks of lm_head"):
        model.resize_token_embeddings(70)
    accelerate.hooks.remove_hook_from_module(model.lm_head)
    del model.lm_head.forward
    merge_lora(model)
    with pytest.raises(ValueError, match="adapter 'default' is merged; call unmerge_lora before resize"):
        model.resize_token_embeddings(70)
    assert model.lm_head.weight.shape == (VOCAB, 64)


USES = {
    "save": to_peft,
    "merge": merge_lora,
    "select": lambda model: select_lora(model, "default"),
    "rows": lambda model: select_lora(model, ["default", None]),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_an_adapter_whose_module_was_replaced_is_not_dropped_in_silence(use):
    model = add_lora(llama(), LoraConfig(rank=2, targets=["q_proj", "lm_head"]))
    model.set_output_embeddings(nn.Linear(64, 70, bias=False))
    with pytest.raises(ValueError, match="adapter 'default' was added to lm_head, and another module stands"):
        use(model)
    remove_lora(model)
    assert type(model.model.layers[0].self_attn.q_proj) is nn.Linear
    model = one_module("Linear")
    model.layer.weight, model.layer.out_features = nn.Parameter(torch.ones(20, 12)), 20
    with pytest.raises(
        ValueError, match=r"factors for a weight of \(10, 12\) at inner.layer, which is \(20, 12\)"
    ):
        use(model)
