"""Adapters of whole models: adding, selecting and training them."""

import math
import re
from collections import UserString

import accelerate.hooks
import pytest
import torch
from lora_models import (
    MODELS,
    SIZES,
    every_model,
    every_option,
    exact,
    inside,
    llama,
    logits,
    several,
    tokens,
    train,
)
from torch import nn
from transformers import MambaConfig, MambaForCausalLM

import nonet
from nonet.lora import (
    LoraConfig,
    add_lora,
    from_peft,
    learning_rate_groups,
    merge_lora,
    remove_lora,
    select_lora,
    to_peft,
    unmerge_lora,
)
from nonet.testing import assert_within_rounding

# Adding.


@every_model
def test_all_linear_reaches_all_but_the_head(kind):
    model = add_lora(MODELS[kind](), LoraConfig(rank=2))
    reached = {n for n, m in model.named_modules() if hasattr(m, "lora")}
    bare = MODELS[kind]()
    head = bare.get_output_embeddings()
    kinds = ("Linear", "Conv1D")
    assert reached == {n for n, m in bare.named_modules() if type(m).__name__ in kinds and m is not head}
    assert len(reached) >= 8


def test_trained_are_the_factors_and_nothing_else():
    model = add_lora(llama(), LoraConfig(rank=4))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all(".lora.default." in name for name in trained)
    # R (in + out) of each of the seven projections of two layers.
    widths = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 96), (64, 96), (96, 64)]
    assert sum(p.numel() for p in trained.values()) == 2 * sum(4 * (i + o) for i, o in widths)


@every_model
@every_option
def test_paths_and_keys_of_the_base_stay(kind, options):
    model = MODELS[kind]()
    before = dict(model.state_dict(keep_vars=True))
    add_lora(model, LoraConfig(rank=2, **options))
    after = dict(model.state_dict(keep_vars=True))
    assert set(before) <= set(after)
    assert all(".lora.default." in key for key in set(after) - set(before))
    copies = model.nonet_lora.trained["default"]
    assert all(after[key] is before[key] for key in before if key not in copies)


@every_model
@every_option
def test_a_fresh_adapter_changes_nothing(kind, options):
    model = MODELS[kind]()
    bare = exact(model)
    add_lora(model, LoraConfig(rank=2, **options))
    assert_within_rounding(logits(model), lambda: logits(bare), "logits")


def test_options_and_seed_are_recorded():
    config = LoraConfig(rank=2, seed=12)
    model = add_lora(llama(), config)
    add_lora(model, LoraConfig(rank=3), "second")
    assert model.nonet_lora.configs == {"default": config, "second": LoraConfig(rank=3)}
    assert model.nonet_lora.configs["default"].seed == 12
    assert model.nonet_lora.selected == "second"
    assert add_lora(llama()).nonet_lora.configs == {"default": LoraConfig()}


def ranks(model, name="default"):
    return {
        path: (m.lora[name].a.shape[0], m.lora[name].scale)
        for path, m in model.named_modules()
        if hasattr(m, "lora") and name in m.lora
    }


@pytest.mark.parametrize(
    ("targets", "reached"),
    [
        (("q_proj", "1.mlp.up_proj"), {"0.self_attn.q_proj": 2, "1.self_attn.q_proj": 2, "1.mlp.up_proj": 2}),
        (r"model\.layers\.0\..*\.[qk]_proj", {"0.self_attn.q_proj": 2, "0.self_attn.k_proj": 2}),
        ({"1.self_attn.q_proj": 5, "q_proj": 3}, {"0.self_attn.q_proj": 3, "1.self_attn.q_proj": 5}),
        ({"0.mlp.up_proj": (4, 6.0)}, {"0.mlp.up_proj": (4, 1.5)}),
    ],
    ids=["names", "expression", "ranks", "ranks and alphas"],
)
def test_targets(targets, reached):
    found = ranks(add_lora(llama(), LoraConfig(rank=2, alpha=4.0, targets=targets)))
    expected = {
        name: size if isinstance(size, tuple) else (size, 4.0 / size) for name, size in reached.items()
    }
    assert found == {f"model.layers.{name}": size for name, size in expected.items()}


def test_embeddings_are_reached_by_name():
    model = add_lora(llama(), LoraConfig(targets=("embed_tokens",)))
    assert set(ranks(model)) == {"model.embed_tokens"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"targets": ("q_proj", "nothing")},
            "targets names 'nothing', which fits no module of LlamaForCausalLM",
        ),
        ({"targets": ("proj",)}, "targets names 'proj', which fits no module"),
        ({"targets": "q_proj"}, "targets='q_proj' fits no module of LlamaForCausalLM"),
        ({"targets": ("self_attn",)}, "LlamaAttention can carry no adapter"),
        ({"full": ("score",)}, "full names 'score', which fits no module of LlamaForCausalLM"),
        (
            {"targets": ("lm_head",), "full": ("lm_head",)},
            "targets names 'lm_head', which is trained in full and gets no factors",
        ),
    ],
)
def test_targets_that_are_not_there_are_named(options, message):
    model = llama()
    before = inside(model)
    with pytest.raises(ValueError, match=re.escape(message)):
        add_lora(model, LoraConfig(**options))
    assert inside(model) == before
    add_lora(model, LoraConfig(rank=2, targets=("q_proj",)), "first")
    with pytest.raises(ValueError, match=re.escape(message)):
        add_lora(model, LoraConfig(**options))
    assert model.nonet_lora.selected == "first"
    assert list(model.nonet_lora.configs) == ["first"]


def test_names_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="name='prompt' is what a model's trained prompt is called"):
        add_lora(llama(), name="prompt")
    model = add_lora(llama(), LoraConfig(targets=("q_proj",)))
    for name in ("", "a.b", "train", "selected"):
        with pytest.raises(ValueError, match="cannot be an adapter's name"):
            add_lora(model, name=name)
    with pytest.raises(ValueError, match="adapter 'default' is there already; the model has default"):
        add_lora(model)
    with pytest.raises(TypeError, match=r"model must be an nn\.Module; got UserString"):
        add_lora(UserString("a name"))


@pytest.mark.parametrize(
    "function", [merge_lora, unmerge_lora, remove_lora, to_peft, lambda m: select_lora(m, None)]
)
def test_a_model_without_adapters_is_refused(function):
    with pytest.raises(ValueError, match="LlamaForCausalLM has no adapter; call add_lora first"):
        function(llama())


def test_weights_that_mamba_reads_without_a_call_are_left():
    torch.manual_seed(0)
    mamba = MambaForCausalLM(MambaConfig(vocab_size=61, hidden_size=32, state_size=4, num_hidden_layers=1))
    model = add_lora(mamba, LoraConfig(rank=2))
    names = {path.rpartition(".")[2] for path in ranks(model)}
    assert names == {"in_proj", "x_proj", "out_proj"}
    with pytest.raises(ValueError, match=r"backbone\.layers\.0\.mixer\.dt_proj, whose weight is read"):
        add_lora(model, LoraConfig(targets=("dt_proj",)), "other")


def test_weights_that_torchs_encoder_reads_without_a_call_are_left():
    model = nn.ModuleDict({"layer": nn.TransformerEncoderLayer(16, 2, 32), "head": nn.Linear(16, 4)})
    assert set(ranks(add_lora(model))) == {"head"}
    for name in ("linear1", "self_attn.out_proj"):
        with pytest.raises(
            ValueError, match=f"targets names layer.{name}, whose weight is read without a call"
        ):
            add_lora(model, LoraConfig(targets=(name,)), "other")


def test_a_forward_pass_on_the_object_is_refused():
    model = llama()
    layer = model.model.layers[0].self_attn.q_proj
    accelerate.hooks.add_hook_to_module(layer, accelerate.hooks.ModelHook())
    with pytest.raises(
        ValueError, match=r"model\.layers\.0\.self_attn\.q_proj has a forward pass of its own"
    ):
        add_lora(model)
    accelerate.hooks.remove_hook_from_module(layer)
    layer.__dict__.pop("forward", None)
    add_lora(model)
    accelerate.hooks.add_hook_to_module(layer, accelerate.hooks.ModelHook())
    with pytest.raises(ValueError, match=r"first remove the hooks of model\.layers\.0\.self_attn\.q_proj"):
        remove_lora(model)


# Biases, and modules trained in full.


@pytest.mark.parametrize("bias", ["none", "lora_only", "all"])
def test_biases_that_are_trained(bias):
    model = add_lora(llama(), LoraConfig(rank=2, targets=("q_proj",), bias=bias))
    trained = {n for n, p in model.named_parameters() if p.requires_grad and ".lora." not in n}
    every = {n for n, _ in llama().named_parameters() if n.endswith(".bias")}
    assert trained == {"none": set(), "lora_only": {n for n in every if "q_proj" in n}, "all": every}[bias]
    assert len(every) == 8


@pytest.mark.parametrize("options", [{"bias": "all"}, {"full": ("lm_head", "norm")}], ids=str)
def test_what_an_adapter_trains_besides_is_its_own(options):
    model = llama(tie_word_embeddings=True)
    bare, before = logits(model), dict(model.named_parameters())
    train(add_lora(model, LoraConfig(rank=2, **options)))
    one = logits(model)
    train(add_lora(model, LoraConfig(rank=2, targets=("q_proj",)), "other"), seed=9)
    assert {n for n, p in model.named_parameters() if p.requires_grad and ".other." not in n} == set()
    other = logits(model)
    for name, expected in (("default", one), (None, bare), ("other", other), ("default", one)):
        select_lora(model, name)
        assert torch.equal(logits(model), expected)
        assert model.config.tie_word_embeddings == (not (name == "default" and "full" in options))
    assert not torch.equal(one, bare)
    add_lora(model, LoraConfig(rank=2, **options), "fresh")  # its copies are the bare model's, not another's
    assert torch.equal(logits(model), bare)
    remove_lora(model)
    assert dict(model.named_parameters()).keys() == before.keys()
    assert all(p is before[n] for n, p in model.named_parameters())
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.tie_word_embeddings


def test_modules_trained_in_full_get_no_factors():
    model = add_lora(llama(), LoraConfig(rank=2, full=("0.mlp", "lm_head")))
    assert not [path for path in ranks(model) if ".0.mlp" in path]
    trained = {n for n, p in model.named_parameters() if p.requires_grad and ".lora." not in n}
    mlp = {f"model.layers.0.mlp.{name}.weight" for name in ("gate_proj", "up_proj", "down_proj")}
    assert trained == {"lm_head.weight", *mlp}


# Selecting.


def test_what_is_selected_is_what_is_trained():
    model = several()
    for which in ("one", None, ("two", None, "three")):
        assert select_lora(model, which).__enter__() is model
        assert model.nonet_lora.selected == which
        names = set(which) if isinstance(which, tuple) else {which}
        for name, p in model.named_parameters():
            adapter = re.search(r"\.lora\.(\w+)\.", name)
            assert p.requires_grad == (adapter is not None and adapter[1] in names)


def test_a_block_gives_back_the_selection():
    model = several()
    select_lora(model, "one")
    one, bare = logits(model), logits(llama())
    with select_lora(model, None) as same:
        assert same is model
        assert torch.equal(logits(model), bare)
        with select_lora(model, ["one", None]):
            assert torch.equal(logits(model)[1], bare[1])
    assert model.nonet_lora.selected == "one"
    assert torch.equal(logits(model), one)
    with pytest.raises(KeyError), select_lora(model, "two"):
        raise KeyError
    assert torch.equal(logits(model), one)


@pytest.mark.parametrize(
    ("which", "message"),
    [
        ("four", "adapter 'four' is not known; the model has one, two, three"),
        (["one", "four"], "adapter 'four' is not known"),
        ([], "which must name an adapter or None for every row; got no row"),
    ],
)
def test_wrong_selections_are_refused(which, message):
    model = several()
    with pytest.raises(ValueError, match=message):
        select_lora(model, which)
    assert model.nonet_lora.selected == "three"


# Training.


def gradients(model, ids):
    model.zero_grad()
    out = model(ids, labels=ids)
    out.loss.backward()
    return [out.logits.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("options", [{}, {"variants": ("dora",), "dropout": 0.2, "bias": "all"}], ids=str)
def test_gradient_checkpointing_changes_nothing(options):
    model = train(add_lora(llama(), LoraConfig(rank=2, **options))).train()
    torch.manual_seed(3)
    plain = gradients(model, tokens())
    model.activation_checkpointing_enable()
    torch.manual_seed(3)
    again = gradients(model, tokens())
    assert all(value.abs().max() > 0 for value in again)
    assert all(map(torch.equal, plain, again))


@every_option
def test_training_lowers_the_loss_and_leaves_the_base(options):
    model, ids = llama(), tokens(4)
    base = {k: v.clone() for k, v in model.state_dict().items()}
    add_lora(model, LoraConfig(rank=4, **options)).train()
    optimizer = torch.optim.AdamW(learning_rate_groups(model, 1e-3))
    losses = []
    for _ in range(8):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    remove_lora(model)
    assert all(torch.equal(model.state_dict()[key], base[key]) for key in base)


def test_the_second_factor_learns_faster():
    config = LoraConfig(
        targets=("q_proj", "embed_tokens"), variants=("dora",), bias="lora_only", full=("lm_head",)
    )
    model = add_lora(llama(), config)
    groups = learning_rate_groups(model, 1e-4, ratio=8.0, weight_decay=0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    found = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert set(found) == {n for n, p in model.named_parameters() if p.requires_grad}
    for name, rates in found.items():
        fast = name.endswith("q_proj.lora.default.b")
        assert rates == (8e-4 if fast else 1e-4, 0.0 if name.endswith(("magnitude", "bias")) else 0.1), name
    assert sum(name.endswith(".b") for name in found) == 3
    torch.optim.AdamW(groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr must be above zero; got 0.0"),
        ({"lr": 1e-4, "ratio": -1}, "ratio must be above zero; got -1"),
        ({"lr": 1e-4}, "nothing in LlamaForCausalLM is trained; select an adapter first"),
    ],
)
def test_rates_that_make_no_sense_are_refused(options, message):
    model = add_lora(llama())
    select_lora(model, None)
    with pytest.raises(ValueError, match=message):
        learning_rate_groups(model, **options)


# In nonet's own model.


def test_ternary_layers_of_our_own_model_carry_adapters():
    torch.manual_seed(0)
    fields = {k: v for k, v in SIZES.items() if k != "pad_token_id"}
    model = nonet.NonetForCausalLM(nonet.NonetConfig(**fields, pattern="F", linear="ternary")).eval()
    kinds = {type(m).__name__ for m in model.modules()}
    assert "BitLinear" in kinds
    bare = logits(model)
    train(add_lora(model, LoraConfig(rank=2)))
    assert not torch.equal(logits(model), bare)
    grads = gradients(model, tokens())
    assert all(grad.abs().max() > 0 for grad in grads)
    config, tensors = to_peft(model)
    out = logits(model)
    remove_lora(model)
    assert torch.equal(logits(from_peft(model, config, tensors)), out)


# Options.


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rank": 0}, ValueError, "rank must be above zero; got 0"),
        ({"rank": 1.5}, TypeError, "rank must be a whole number; got 1.5"),
        ({"alpha": -1}, ValueError, "alpha must be above zero; got -1"),
        ({"dropout": 1.0}, ValueError, "dropout must be at least 0 and below 1; got 1.0"),
        ({"bias": "some"}, ValueError, "bias='some' is not known; choose from none, all, lora_only"),
        (
            {"variants": ("qlora",)},
            ValueError,
            "variants='qlora' is not known; choose from rslora, dora, pissa",
        ),
        ({"variants": "dora"}, TypeError, "variants must be a tuple or list of names; got 'dora'"),
        ({"full": "lm_head"}, TypeError, "full must be a tuple or list of names; got 'lm_head'"),
        ({"full": [3]}, TypeError, "full must be a tuple or list of names; got (3,)"),
        ({"seed": "0"}, TypeError, "seed must be a whole number; got '0'"),
        ({"targets": "("}, ValueError, "targets='(' is no regular expression"),
        ({"targets": ""}, TypeError, "targets must be a string, a tuple or list of names, or a mapping; got"),
        ({"targets": ()}, ValueError, "targets must name a module; got nothing"),
        ({"targets": []}, ValueError, "targets must name a module; got nothing"),
        (
            {"targets": 3},
            TypeError,
            "targets must be a string, a tuple or list of names, or a mapping; got int",
        ),
        ({"rank": True}, TypeError, "rank must be a whole number; got True"),
        ({"alpha": math.inf}, ValueError, "alpha must be above zero and finite; got inf"),
        ({"dropout": "0.1"}, ValueError, "dropout must be at least 0 and below 1; got '0.1'"),
        ({"targets": {"q_proj": (2.5, 1.0)}}, TypeError, "rank of q_proj must be a whole number; got 2.5"),
        ({"targets": {"q_proj": 0}}, ValueError, "rank of q_proj must be above zero; got 0"),
        ({"targets": (("q_proj", 2),)}, ValueError, "targets must hold names, or (name, rank, alpha)"),
    ],
)
def test_wrong_options_are_named(options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        LoraConfig(**options)


def test_options_can_be_compared_and_hashed():
    config = LoraConfig(targets={"q_proj": 3, "v_proj": (2, 1.0)})
    assert config.targets == (("q_proj", 3, 8.0), ("v_proj", 2, 1.0))
    assert config == LoraConfig(targets=config.targets)
    assert hash(config) == hash(LoraConfig(targets=config.targets))
    assert len({LoraConfig(), LoraConfig(), config}) == 2
