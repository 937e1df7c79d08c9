"""Merging adapters into a model's weights, and taking them out again so that nothing is left."""

import copy
import re

import pytest
import torch
from lora_models import (
    MODELS,
    every_model,
    every_option,
    exact,
    inside,
    llama,
    logits,
    several,
    train,
)
from torch import nn
from transformers import AutoModelForCausalLM

from nonet.lora import (
    LoraConfig,
    add_lora,
    merge_lora,
    remove_lora,
    select_lora,
    unmerge_lora,
)
from nonet.testing import assert_within_budget, assert_within_rounding

# Merging.


@every_model
@every_option
def test_merged_is_as_unmerged_and_back_to_the_bit(kind, options):
    model = train(add_lora(MODELS[kind](), LoraConfig(rank=3, **options)))
    before, plain, wide = dict(model.named_parameters()), logits(model), exact(model)
    assert merge_lora(model) is model
    assert model.nonet_lora.merged == "default"
    assert_within_rounding(logits(model), lambda: logits(wide), "logits")
    assert next(m for m in model.modules() if hasattr(m, "lora")).weight.requires_grad is False
    assert unmerge_lora(model) is model
    assert model.nonet_lora.merged is None
    assert all(p is before[n] for n, p in model.named_parameters())
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("variants", [(), ("dora",)], ids=["lora", "dora"])
def test_half_precision_is_merged_in_float32_and_restored_to_the_bit(variants):
    model = train(add_lora(llama(torch.bfloat16), LoraConfig(rank=3, variants=variants)), size=1.0)
    layer = model.model.layers[0].mlp.up_proj
    before, bits = layer.weight, layer.weight.clone()
    factors = layer.lora.default
    change = before.float() + factors.scale * factors.b @ factors.a
    if variants:
        change *= (factors.magnitude / torch.linalg.vector_norm(change, dim=1))[:, None]
    merge_lora(model)
    assert layer.weight.dtype == torch.bfloat16
    assert_within_budget(layer.weight, change.bfloat16(), change, "merged weight", factor=1.0)  # one rounding
    unmerge_lora(model)
    assert layer.weight is before
    assert torch.equal(before, bits)


@every_option
def test_a_merged_embedding_is_untied_until_unmerged(options):
    model = llama(tie_word_embeddings=True)
    config = LoraConfig(rank=3, targets=("embed_tokens", "q_proj"), **options)
    train(add_lora(model, config))
    plain, wide, head = logits(model), exact(model), model.lm_head.weight
    merge_lora(model)
    assert_within_rounding(logits(model), lambda: logits(wide), "logits")
    assert model.lm_head.weight is head
    assert model.model.embed_tokens.weight is not head
    assert model.config.tie_word_embeddings is False
    unmerge_lora(model)
    assert model.model.embed_tokens.weight is head
    assert model.config.tie_word_embeddings is True
    assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", ("embed_tokens", "up_proj")], ids=str)
def test_a_merged_model_is_saved_as_a_plain_one(tied, targets, tmp_path):
    model = llama(tie_word_embeddings=tied)
    keys = set(model.state_dict())
    train(add_lora(model, LoraConfig(rank=3, targets=targets, bias="all", variants=("dora",))))
    merge_lora(model)
    assert set(model.state_dict()) == keys
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(loaded.eval()), logits(model))
    unmerge_lora(model)
    assert set(model.state_dict()) > keys


def test_merging_names_what_stands_in_its_way():
    model = several()
    select_lora(model, ["one", "two"])
    with pytest.raises(
        ValueError, match=re.escape("merge_lora needs one adapter; selected is ('one', 'two')")
    ):
        merge_lora(model)
    select_lora(model, None)
    with pytest.raises(ValueError, match="merge_lora needs one adapter; selected is None"):
        merge_lora(model)
    with pytest.raises(ValueError, match="adapter 'four' is not known"):
        merge_lora(model, "four")
    with pytest.raises(ValueError, match="no adapter is merged; call merge_lora first"):
        unmerge_lora(model)
    merge_lora(model, "two")
    assert model.nonet_lora.selected == "two"
    for call in (
        lambda: merge_lora(model, "one"),
        lambda: add_lora(model, name="x"),
        lambda: select_lora(model, "one"),
    ):
        with pytest.raises(ValueError, match=r"adapter 'two' is merged( already)?; call unmerge_lora first"):
            call()


def test_merged_weights_move_with_the_model_and_so_does_what_is_kept():
    model = train(add_lora(llama(), LoraConfig(rank=2, bias="all")))
    weight = model.model.layers[0].mlp.up_proj.weight
    merge_lora(model).double()
    unmerge_lora(model)
    assert model.model.layers[0].mlp.up_proj.weight is weight
    assert weight.dtype == torch.float64
    remove_lora(model)
    assert {p.dtype for p in model.parameters()} == {torch.float64}


# Removing.


@every_model
@every_option
@pytest.mark.parametrize("merged", [False, True])
def test_a_model_without_its_adapters_is_what_it_was(kind, options, merged):
    model = MODELS[kind]()
    model.get_input_embeddings().weight.requires_grad_(False)
    before, state = inside(model), {k: v.clone() for k, v in model.state_dict().items()}
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    parameters = dict(model.named_parameters())
    bare, shown, config = logits(model), repr(model), model.config.to_dict()
    for name in ("one", "two"):
        train(
            add_lora(model, LoraConfig(rank=2, full=("1.mlp",) if kind == "llama" else (), **options), name)
        )
    if merged:
        merge_lora(model)
    assert remove_lora(model) is model
    assert inside(model) == before
    assert repr(model) == shown
    assert not hasattr(model, "nonet_lora")
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(model.state_dict()[key], state[key]) for key in state)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags
    assert all(p is parameters[n] for n, p in model.named_parameters())
    assert torch.equal(logits(model), bare)
    assert model.config.to_dict() == config


def test_one_of_several_is_removed():
    model = several()
    expected = {}
    for name in ("one", "two"):
        select_lora(model, name)
        expected[name] = logits(model)
    remove_lora(model, "three")
    assert model.nonet_lora.selected == "two"
    assert torch.equal(logits(model), expected["two"])
    remove_lora(model, "two")
    assert model.nonet_lora.selected is None
    assert type(model.model.embed_tokens) is nn.Embedding
    assert torch.equal(logits(model), logits(llama()))
    select_lora(model, "one")
    assert torch.equal(logits(model), expected["one"])
    with pytest.raises(ValueError, match="adapter 'two' is not known; the model has one"):
        remove_lora(model, "two")
    add_lora(model, name="two")
    assert list(model.nonet_lora.configs) == ["one", "two"]


def test_a_copy_of_a_model_is_apart_from_it():
    model = train(add_lora(llama(tie_word_embeddings=True), LoraConfig(rank=2, full=("lm_head",))))
    twin, out = copy.deepcopy(model), logits(model)
    assert torch.equal(logits(twin), out)
    remove_lora(twin)
    assert torch.equal(logits(twin), logits(llama(tie_word_embeddings=True)))
    assert twin.lm_head.weight is twin.model.embed_tokens.weight
    assert torch.equal(logits(model), out)
