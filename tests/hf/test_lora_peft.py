"""PEFT loads our adapters and we load PEFT's, with equal logits; what is not supported is refused by name."""

import copy
import json
import re

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from nonet.lora import LoraConfig, add_lora, from_peft, remove_lora, select_lora, to_peft
from nonet.testing import assert_within_rounding

PATTERN = {"q_proj": 2, r"^model\.layers\.1\.mlp\.up_proj": 7}
NAMES = {"q_proj": 2, "1.mlp.up_proj": (7, 3.0), "up_proj": 4}
# What the same adapter is called by us and by PEFT.
LLAMA = {
    "lora": ({}, {}),
    "rslora": ({"variants": ("rslora",)}, {"use_rslora": True}),
    "dora": ({"variants": ("dora",)}, {"use_dora": True}),
    "rslora and dora": ({"variants": ("rslora", "dora")}, {"use_rslora": True, "use_dora": True}),
    "names": ({"targets": ("q_proj", "1.mlp.up_proj")}, {"target_modules": ["q_proj", "1.mlp.up_proj"]}),
    "expression": ({"targets": r".*\.[qv]_proj"}, {"target_modules": r".*\.[qv]_proj"}),
    "ranks": (
        {"targets": NAMES},
        {
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": PATTERN,
            "alpha_pattern": {"1.mlp.up_proj": 3},
        },
    ),
    "embedding": ({"targets": ("embed_tokens", "v_proj")}, {"target_modules": ["embed_tokens", "v_proj"]}),
    "embedding with dora": (
        {"targets": ("embed_tokens", "v_proj"), "variants": ("dora",)},
        {"target_modules": ["embed_tokens", "v_proj"], "use_dora": True},
    ),
    "bias": ({"bias": "all"}, {"bias": "all"}),
    "bias of targets": (
        {"bias": "lora_only", "targets": ("q_proj",)},
        {"bias": "lora_only", "target_modules": ["q_proj"]},
    ),
    "full": ({"full": ("lm_head", "model.norm")}, {"modules_to_save": ["lm_head", "model.norm"]}),
    "dropout": ({"dropout": 0.1}, {"lora_dropout": 0.1}),
}
CASES = {
    **{f"llama, {name}": ("llama", *options) for name, options in LLAMA.items()},
    **{f"tied, {name}": ("tied", *LLAMA[name]) for name in ("embedding", "full")},
    **{f"gpt2, {name}": ("gpt2", *LLAMA[name]) for name in ("lora", "dora", "bias")},
    "gpt2, names": ("gpt2", {"targets": ("c_attn", "wte")}, {"target_modules": ["c_attn", "wte"]}),
}
every_case = pytest.mark.parametrize(("kind", "ours", "theirs"), CASES.values(), ids=CASES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`"),
    pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to False"),
]


def make(kind, dtype=torch.float32):
    torch.manual_seed(0)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=61, n_embd=64, n_layer=2, n_head=4, initializer_range=0.2)
        model = GPT2LMHeadModel(config)
    else:
        sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
        config = LlamaConfig(
            vocab_size=61,
            hidden_size=64,
            num_hidden_layers=2,
            attention_bias=True,
            initializer_range=0.2,
            **sizes,
        )
        config.tie_word_embeddings = kind == "tied"
        model = LlamaForCausalLM(config)
    return model.to(dtype).eval()


def tokens(rows=2, length=11):
    return torch.randint(61, (rows, length), generator=torch.Generator().manual_seed(0))


def logits(model, **options):
    with torch.no_grad():
        return model(input_ids=tokens(), **options).logits


def train(model, seed=7):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator).to(p.dtype)
    return model


def trained(kind, options, dtype=torch.float32, name="default"):
    return train(add_lora(make(kind, dtype), LoraConfig(**{"rank": 4, "alpha": 6.0, **options}), name))


def wrapped(kind, options, dtype=torch.float32):
    config = {"r": 4, "lora_alpha": 6, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **options}
    model = peft.get_peft_model(make(kind, dtype), peft.LoraConfig(**config))
    with torch.no_grad():
        for name, p in model.named_parameters():  # else PEFT's factors of a linear layer start as zero
            if p.requires_grad and "lora_" in name:
                p += 0.1 * torch.randn_like(p)
    return train(model).eval()


def write(model, folder, name="default"):
    config, tensors = to_peft(model, name)
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, sort_keys=True))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def read(folder):
    config = json.loads((folder / "adapter_config.json").read_text())
    return config, load_file(folder / "adapter_model.safetensors")


def assert_as(found, model, name="logits"):
    """Logits that a model gives in float64, but for the roundings of their dtype."""
    wide = copy.deepcopy(model).double()
    assert_within_rounding(found, lambda: logits(wide), name, model.dtype)


@every_dtype
@every_case
def test_peft_loads_ours(kind, ours, theirs, dtype, tmp_path):
    model = trained(kind, ours, dtype)
    loaded = peft.PeftModel.from_pretrained(make(kind, dtype), write(model, tmp_path)).eval()
    out = logits(model)
    assert_as(logits(loaded), model, "PEFT's")
    assert_as(out, loaded, "ours")
    assert not torch.equal(out, logits(make(kind, dtype)))


@every_dtype
@every_case
def test_we_load_pefts(kind, ours, theirs, dtype, tmp_path):
    model = wrapped(kind, theirs, dtype)
    model.save_pretrained(tmp_path)
    loaded = from_peft(make(kind, dtype), *read(tmp_path))
    out = logits(loaded)
    assert_as(out, model)
    assert not torch.equal(out, logits(make(kind, dtype)))
    config = loaded.nonet_lora.configs["default"]
    wanted = LoraConfig(**{"rank": 4, "alpha": 6.0, **ours})
    for field in ("rank", "alpha", "dropout", "bias", "variants"):
        assert getattr(config, field) == getattr(wanted, field), field


@every_case
def test_the_files_hold_what_pefts_do(kind, ours, theirs, tmp_path):
    model = wrapped(kind, theirs)
    model.save_pretrained(tmp_path)
    config, tensors = read(tmp_path)
    mine, held = to_peft(trained(kind, ours))
    tensors = {key: value for key, value in tensors.items() if not key.endswith("base_layer.weight")}
    assert {key: value.shape for key, value in held.items()} == {k: v.shape for k, v in tensors.items()}
    assert all(value.dtype == tensors[key].dtype for key, value in held.items())
    assert set(mine) <= set(config)
    for field in (
        "peft_type",
        "task_type",
        "inference_mode",
        "bias",
        "use_rslora",
        "use_dora",
        "fan_in_fan_out",
    ):
        assert mine[field] == config[field], field
    if not theirs.get("rank_pattern"):
        assert (mine["r"], mine["lora_alpha"], mine["lora_dropout"]) == tuple(
            config[field] for field in ("r", "lora_alpha", "lora_dropout")
        )
    json.dumps(mine)
    assert peft.LoraConfig(**mine).peft_type == "LORA"


@every_case
def test_what_we_write_we_read_to_the_bit(kind, ours, theirs, tmp_path):
    model = trained(kind, ours, name="first")
    again = from_peft(make(kind), *read(write(model, tmp_path, "first")), name="second")
    assert torch.equal(logits(again), logits(model))
    one, two = to_peft(model, "first"), to_peft(again, "second")
    assert one[0] == two[0]
    assert one[1].keys() == two[1].keys()
    assert all(torch.equal(value, two[1][key]) for key, value in one[1].items())
    trainable = {n.replace("second", "first") for n, p in again.named_parameters() if p.requires_grad}
    assert trainable == {n for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("variants", [("pissa",), ("pissa", "rslora"), ("pissa", "dora")], ids="+".join)
def test_pissa_is_written_as_a_plain_adapter_of_twice_the_rank(variants, tmp_path):
    model = trained("llama", {"variants": variants, "targets": {"q_proj": 4, "up_proj": (3, 5.0)}})
    config, tensors = read(write(model, tmp_path))
    ranks = {
        key.split(".")[-3]: len(value) for key, value in tensors.items() if key.endswith("lora_A.weight")
    }
    assert ranks == {"q_proj": 8, "up_proj": 6}
    assert config["init_lora_weights"] is True
    loaded = peft.PeftModel.from_pretrained(make("llama"), tmp_path).eval()
    assert_as(logits(loaded), model, "PEFT's")
    again = from_peft(make("llama"), config, tensors)
    assert_as(logits(again), model, "ours")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("variants", [(), ("dora",)], ids=["lora", "dora"])
def test_gradients_are_pefts(kind, variants, tmp_path):
    model = trained(kind, {"variants": variants})
    write(model, tmp_path)
    words = {"a": "lora_A.default.weight", "b": "lora_B.default.weight"}
    words["magnitude"] = "lora_magnitude_vector.default.weight"

    def grads(model):
        model.zero_grad()
        model(input_ids=tokens(), labels=tokens()).loss.backward()
        return {
            n.removeprefix("base_model.model."): p.grad
            for n, p in model.named_parameters()
            if p.requires_grad
        }

    loaded = peft.PeftModel.from_pretrained(make(kind), tmp_path, is_trainable=True).eval()
    found, wide = grads(model), loaded.double()
    keys = [f"{path}.{words[part]}" for path, _, part in (name.partition(".lora.default.") for name in found)]
    assert len(found) == len(grads(wide)) == (14 if kind == "llama" else 8) * (3 if variants else 2)
    assert_within_rounding([*found.values()], lambda: list(map(grads(wide).get, keys)), "gradient")


def test_a_mixed_batch_is_pefts(tmp_path):
    model, rows = make("llama"), ("one", None, "two", "one")
    train(add_lora(model, LoraConfig(rank=2), "one"), seed=1)
    train(
        add_lora(model, LoraConfig(rank=5, targets=("q_proj", "embed_tokens"), variants=("rslora",)), "two"),
        2,
    )
    folders = {name: write(model, tmp_path / name, name) for name in ("one", "two")}
    loaded = peft.PeftModel.from_pretrained(make("llama"), folders["one"], adapter_name="one")
    loaded.load_adapter(folders["two"], adapter_name="two")
    loaded.eval()
    names = ["__base__" if name is None else name for name in rows]

    def run(model, **options):
        with torch.no_grad():
            return model(input_ids=tokens(4), **options).logits

    select_lora(model, rows)
    wide = loaded.double()
    assert_within_rounding(run(model), lambda: run(wide, adapter_names=names), "logits")


def test_peft_reads_our_fields_without_a_word(tmp_path, recwarn):
    write(trained("llama", {}), tmp_path)
    peft.PeftModel.from_pretrained(make("llama"), tmp_path)
    assert not [str(w.message) for w in recwarn if "is_gradient_checkpointing" not in str(w.message)]


def test_a_model_of_no_task_is_written_without_one(tmp_path):
    model = make("llama").model
    config, _ = to_peft(add_lora(model, LoraConfig(rank=2)))
    assert config["task_type"] is None
    assert to_peft(trained("llama", {}))[0]["task_type"] == "CAUSAL_LM"


@pytest.mark.parametrize("targets", ["all-linear", "ALL-LINEAR"])
def test_all_linear_in_a_file_is_understood(targets):
    config, tensors = to_peft(trained("llama", {}))
    model = from_peft(make("llama"), {**config, "target_modules": targets}, tensors)
    assert torch.equal(logits(model), logits(trained("llama", {})))


def test_names_for_other_models_are_passed_over():
    config, tensors = to_peft(trained("llama", {"full": ("lm_head",)}))
    config = {
        **config,
        "target_modules": [*config["target_modules"], "c_attn"],
        "modules_to_save": ["lm_head", "score"],
    }
    assert torch.equal(
        logits(from_peft(make("llama"), config, tensors)), logits(trained("llama", {"full": ("lm_head",)}))
    )


def test_the_least_configuration_serves():
    config, tensors = to_peft(trained("llama", {"rank": 8, "alpha": 8.0, "targets": ("q_proj",)}))
    config = {"peft_type": "LORA", "target_modules": ["q_proj"]}
    expected = logits(trained("llama", {"rank": 8, "alpha": 8.0, "targets": ("q_proj",)}))
    assert torch.equal(logits(from_peft(make("llama"), config, tensors)), expected)


REFUSED = {
    "peft_type": "LOHA",
    "target_modules": None,
    "layers_to_transform": [0],
    "layer_replication": [[0, 2]],
    "target_parameters": ["experts.gate_up_proj"],
    "trainable_token_indices": [3],
    "loftq_config": {"loftq_bits": 4},
    "megatron_config": {"x": 1},
    "exclude_modules": ["q_proj"],
    "lora_bias": True,
    "use_qalora": True,
    "use_bdlora": {"nblocks": 2},
    "alora_invocation_tokens": [1],
    "arrow_config": {"top_k": 1},
    "velora_config": {"scale": 1.0},
    "kasa_config": {"x": 1},
    "ensure_weight_tying": True,
    "something_new": {"x": 1},
    "init_lora_weights": "pissa",
}


def assert_bare(model):
    assert not hasattr(model, "nonet_lora")
    assert torch.equal(logits(model), logits(make("llama")))


@pytest.mark.parametrize(("field", "value"), REFUSED.items(), ids=REFUSED)
def test_what_is_not_supported_is_refused_by_name(field, value):
    config, tensors = to_peft(trained("llama", {}))
    model = make("llama")
    with pytest.raises(ValueError, match=rf"{field}={re.escape(repr(value))} (is not|must)"):
        from_peft(model, {**config, field: value}, tensors)
    assert_bare(model)


@pytest.mark.parametrize("start", ["pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica"])
def test_starts_that_change_the_model_are_refused(start):
    config, tensors = to_peft(trained("llama", {}))
    with pytest.raises(ValueError, match=f"init_lora_weights='{start}' is not supported"):
        from_peft(make("llama"), {**config, "init_lora_weights": start}, tensors)


def test_every_field_of_pefts_is_known_or_refused():
    """PEFT's own defaults load; a field that PEFT will add is refused once it is set."""
    config, tensors = to_peft(trained("llama", {}))
    defaults = peft.LoraConfig().to_dict()
    loaded = from_peft(make("llama"), {**defaults, **config}, tensors)
    assert torch.equal(logits(loaded), logits(trained("llama", {})))


KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
TENSORS = {
    "missing": (
        lambda t: t.pop(KEY),
        "the adapter lacks 1 tensors, such as model.layers.0.self_attn.q_proj.lora_A",
    ),
    "unexpected": (
        lambda t: t.update({"base_model.model.model.layers.9.x.lora_A.weight": torch.ones(2)}),
        "the adapter holds model.layers.9.x.lora_A.weight, which the model has no place for",
    ),
    "shape": (
        lambda t: t.update({KEY: torch.ones(3, 64)}),
        "model.layers.0.self_attn.q_proj.lora_A.weight has the shape (3, 64); the model needs (4, 64)",
    ),
    "a weight of the model": (
        lambda t: t.update({"base_model.model.model.norm.weight": torch.zeros(64)}),
        "the adapter changes model.norm.weight of the model itself",
    ),
    "a magnitude without dora": (
        lambda t: t.update({KEY.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(64)}),
        "the adapter holds model.layers.0.self_attn.q_proj.lora_magnitude_vector",
    ),
}


@pytest.mark.parametrize(("change", "message"), TENSORS.values(), ids=TENSORS)
def test_tensors_that_do_not_fit_are_named(change, message):
    config, tensors = to_peft(trained("llama", {}))
    change(tensors)
    model = make("llama")
    with pytest.raises(ValueError, match=re.escape(message)):
        from_peft(model, config, tensors)
    assert_bare(model)
    add_lora(model, LoraConfig(rank=2), "before")
    with pytest.raises(ValueError, match=re.escape(message)):
        from_peft(model, config, tensors)
    assert model.nonet_lora.selected == "before"
    remove_lora(model)
    assert_bare(model)


def test_a_weight_of_the_model_that_is_unchanged_is_passed_over():
    config, tensors = to_peft(trained("llama", {}))
    model = make("llama")
    tensors["base_model.model.model.norm.weight"] = model.model.norm.weight.detach()
    assert torch.equal(logits(from_peft(model, config, tensors)), logits(trained("llama", {})))


class _Nested(torch.nn.Module):
    """Its one layer has the name that another one's path ends with."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc = torch.nn.Linear(8, 8)
        self.block = torch.nn.ModuleDict({"fc": torch.nn.Linear(8, 8)})

    def forward(self, x):
        return self.block["fc"](self.fc(x).tanh())


@pytest.mark.parametrize("targets", ["fc", r"block\.fc"])
def test_a_path_that_others_end_with_is_written_as_a_pattern(targets, tmp_path):
    model, x = add_lora(_Nested(), LoraConfig(rank=2, targets=targets)), torch.ones(2, 8)
    write(train(model), tmp_path)
    assert to_peft(model)[0]["target_modules"] == targets
    again = from_peft(_Nested(), *read(tmp_path))
    assert torch.equal(again(x), model(x))
    assert again.nonet_lora.targets == model.nonet_lora.targets
    theirs = peft.PeftModel.from_pretrained(_Nested(), tmp_path)
    wide = copy.deepcopy(model).double()
    assert_within_rounding(theirs(x).detach(), lambda: wide(x.double()), "PEFT's")


def test_a_module_in_full_may_have_buffers_of_whole_numbers():
    def build():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4)).eval()

    model, x = train(add_lora(build(), LoraConfig(rank=2, targets=["0"], full=["1"]))), torch.ones(2, 4)
    config, tensors = to_peft(model)
    assert tensors["base_model.model.1.num_batches_tracked"].dtype == torch.int64
    assert torch.equal(from_peft(build(), config, tensors)(x), model(x))


def test_an_adapter_for_another_model_is_refused():
    config, tensors = to_peft(trained("llama", {}))
    with pytest.raises(ValueError, match="fits no module"):
        from_peft(make("gpt2"), config, tensors)


def test_names_of_modules_trained_in_full_are_read_as_peft_reads_them(tmp_path):
    """By PEFT's rule ``norm`` is the end of ``input_layernorm`` too."""
    model = wrapped("llama", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]})
    model.save_pretrained(tmp_path)
    loaded = from_peft(make("llama"), *read(tmp_path))
    assert len(loaded.nonet_lora.configs["default"].full) == 5
    assert_as(logits(loaded), model)
