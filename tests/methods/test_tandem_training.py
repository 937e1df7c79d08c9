"""Training through Transformers' Trainer, what is written to disk, and options that do not fit."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from nonet import NonetConfig, NonetForCausalLM
from nonet.ecosystem import CACHE
from nonet.tandem import Router, RouterTraining, Tandem, TandemConfig, secondary_from

V = 61


def llama(layers, hidden=64, seed=0, **fields):
    torch.manual_seed(seed)
    sizes = {"hidden_size": hidden, "num_attention_heads": 4, "num_key_value_heads": 2}
    fields = {"vocab_size": V, "intermediate_size": 96, "initializer_range": 0.15, **sizes, **fields}
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **fields)).eval()


def gpt2(layers, seed=0, **fields):
    torch.manual_seed(seed)
    sizes = {"n_embd": 32, "n_layer": layers, "n_head": 4, "n_positions": 64, "vocab_size": V}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, **fields)).eval()


def tandem(**options):
    return Tandem(llama(3), llama(2, hidden=32, seed=1), TandemConfig(**options))


def ids(rows=1, length=9, seed=0):
    return torch.randint(1, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def of_the_primary(model, rows=16, length=24, seed=0):
    """Texts that the primary likes, which a secondary can learn."""
    torch.manual_seed(seed)
    return model.primary.generate(
        ids(rows, 2, seed),
        do_sample=True,
        top_k=4,
        max_new_tokens=length - 2,
        pad_token_id=0,
        eos_token_id=None,
    )


def train(model, texts, folder, steps=20, rate=3e-3, **options):
    items = [{"input_ids": text, "labels": text} for text in texts]
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=8,
        learning_rate=rate,
        use_cpu=True,
        disable_tqdm=True,
        report_to="none",
        logging_strategy="no",
        **{"save_strategy": "no", **options},
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=items)
    trainer.train()
    return trainer


def loss(model, texts):
    with torch.no_grad():
        return model(texts, labels=texts).loss.item()


# Training.


@pytest.mark.parametrize("kind", ["ce", "distil"])
def test_training_lowers_the_loss_and_leaves_the_primary(kind, tmp_path):
    model = tandem(loss=kind)
    texts, before = of_the_primary(model), copy.deepcopy(model.state_dict())
    primary = copy.deepcopy(model.primary.state_dict())
    first = loss(model, texts)
    train(model, texts, tmp_path)
    assert loss(model, texts) < 0.8 * first
    assert not model.primary.training
    assert all(torch.equal(t, primary[name]) for name, t in model.primary.state_dict().items())
    after = model.state_dict()
    assert not torch.equal(after["projections.0.weight"], before["projections.0.weight"])
    assert not torch.equal(after["secondary.lm_head.weight"], before["secondary.lm_head.weight"])


def test_reading_the_primary_helps(tmp_path):
    """Trained alike, the secondary that reads is better on other texts than the one that is on its own."""
    losses = {}
    for block in (1, 64):
        model = Tandem(llama(3), llama(1, hidden=32, seed=1), TandemConfig(block=block))
        texts, others = of_the_primary(model, rows=32), of_the_primary(model, rows=32, seed=1)
        train(model, texts, tmp_path, steps=30, rate=1e-2)
        losses[block] = loss(model, others)
    assert losses[1] < losses[64]


def test_a_secondary_of_the_primarys_layers_can_begin_with_what_they_read():
    losses = {}
    for start in ("random", "identity"):
        primary = llama(3)
        model = Tandem(primary, secondary_from(primary, 3), TandemConfig(layers=(0, 1, 2), start=start))
        losses[start] = loss(model, of_the_primary(model))
    assert losses["identity"] < losses["random"]


def test_a_checkpoint_of_trainer_holds_what_is_trained_once(tmp_path):
    primary = gpt2(2)  # its head is tied to its embedding
    model = Tandem(primary, secondary_from(primary, 1))
    texts = of_the_primary(model, rows=8, length=12)
    train(model, texts, tmp_path, steps=2, save_strategy="steps", save_steps=1)
    kept = load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert set(kept) == {name for name, p in model.named_parameters() if p.requires_grad}
    fresh = Tandem(gpt2(2), gpt2(1, seed=9))
    result = fresh.load_state_dict(kept)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(fresh(texts).logits, model.eval()(texts).logits)
    with pytest.raises(RuntimeError, match=r"Missing key.*projections.0.weight"):
        fresh.load_state_dict({n: t for n, t in kept.items() if not n.startswith("projections")})
    resumed = Tandem(gpt2(2), gpt2(1, seed=9))
    trainer = Trainer(
        model=resumed,
        args=TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=2,
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
        ),
        train_dataset=[{"input_ids": text, "labels": text} for text in texts],
    )
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert torch.equal(resumed.projections[0].weight, model.projections[0].weight)


def test_first_values_follow_their_seed():
    first, same, other = (tandem(seed=seed).projections[0].weight for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    spread = first.std().item() * 64**0.5
    assert 0.9 < spread < 1.1


# The router.


def test_a_trained_router_spares_tokens_that_would_be_rejected(tmp_path):
    primary = llama(3)
    model = Tandem(primary, secondary_from(primary, 2), TandemConfig(layers=(0, 1), start="identity"))
    texts = of_the_primary(model, rows=32)
    train(model, texts, tmp_path, steps=30, rate=1e-3)
    model.eval()
    model.router = Router(64)
    learner = RouterTraining(model, block=6)
    with torch.no_grad():
        before = learner(texts).loss.item()
    others = copy.deepcopy(model.secondary.state_dict())
    train(learner, texts, tmp_path, steps=60, rate=1e-2)
    with torch.no_grad():
        after = learner(texts).loss.item()
        q = model(texts).logits.softmax(-1).flatten(0, 1)
        guesses = model.router(q, model.secondary.get_input_embeddings().weight).sigmoid()
    assert after < before
    model.router.threshold = 1.0 - guesses.median().item()  # these models are nowhere near the usual one
    assert all(torch.equal(t, others[name]) for name, t in model.secondary.state_dict().items())
    prompts, options = texts[:4, :6], {"max_new_tokens": 24, "eos_token_id": (), "return_stats": True}
    fixed, whole = model.generate(prompts, block=6, **options)
    adapted, spared = model.generate(prompts, block="adaptive", max_block=6, **options)
    assert torch.equal(fixed, adapted)
    assert 0 < spared.drafted - spared.accepted < whole.drafted - whole.accepted
    assert spared.accepted / spared.drafted > whole.accepted / whole.drafted


def test_router_errors():
    with pytest.raises(ValueError, match=r"tandem\.router is None"):
        RouterTraining(tandem(), block=4)
    with pytest.raises(ValueError, match="threshold must lie between 0 and 1"):
        Router(8, threshold=1.0)
    with pytest.raises(ValueError, match="top must be above zero"):
        Router(8, top=0)


# On disk.


@pytest.mark.parametrize("reading", ["states", "keys_values"])
@pytest.mark.parametrize("router", [False, True])
def test_saved_and_loaded_it_is_the_same(reading, router, tmp_path):
    model, tokens = tandem(reading=reading, layers=(1, 3), seed=4), ids()
    if router:
        model.router = Router(32, top=3, hidden=8, seed=2)
    model.save_pretrained(tmp_path / "new" / "tandem")
    model.save_pretrained(tmp_path / "new" / "tandem")  # over the last one
    names = {"config.json", "projections.safetensors", "secondary"} | (
        {"router.safetensors"} if router else set()
    )
    assert {path.name for path in (tmp_path / "new" / "tandem").iterdir()} == names
    loaded = Tandem.from_pretrained(tmp_path / "new" / "tandem", model.primary)
    assert loaded.options == model.options
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    if router:
        q = torch.softmax(torch.randn(2, V), -1)
        embedding = model.secondary.get_input_embeddings().weight
        assert torch.equal(loaded.router(q, embedding), model.router(q, embedding))


def test_what_cannot_be_loaded_says_why(tmp_path):
    with pytest.raises(ValueError, match="holds no tandem"):
        Tandem.from_pretrained(tmp_path, llama(3))
    tandem().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="trained with another primary"):
        Tandem.from_pretrained(tmp_path, llama(2))
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(about | {"format": "another"}))
    with pytest.raises(ValueError, match="holds no tandem"):
        Tandem.from_pretrained(tmp_path, llama(3))


def test_a_save_that_stops_half_way_leaves_the_last_tandem(tmp_path, monkeypatch):
    model = tandem()
    model.save_pretrained(tmp_path)
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    monkeypatch.setattr("nonet.tandem.saved.save_file", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        model.save_pretrained(tmp_path)
    assert {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()} == before
    assert len(list(Tandem.from_pretrained(tmp_path, model.primary).parameters())) > 0


# A secondary made of the primary.


@pytest.mark.parametrize("family", [llama, gpt2])
@pytest.mark.parametrize(("layers", "kept"), [(2, [0, 1]), ((0, 2), [0, 2])])
def test_a_secondary_is_copies_of_layers(family, layers, kept):
    primary = family(3)
    state = torch.random.get_rng_state()
    small = secondary_from(primary, layers)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert small.config.num_hidden_layers == 2
    assert primary.config.num_hidden_layers == 3
    assert not small.training
    tied = family is gpt2
    assert (small.get_input_embeddings().weight is small.get_output_embeddings().weight) == tied
    with torch.no_grad():  # dropping the other layers from the primary gives the same
        own = primary.model.layers if family is llama else primary.transformer.h
        chosen = torch.nn.ModuleList(own[i] for i in kept)
        for index, layer in enumerate(chosen):
            (layer.self_attn if family is llama else layer.attn).layer_idx = index
        setattr(*((primary.model, "layers") if family is llama else (primary.transformer, "h")), chosen)
        primary.config.num_hidden_layers = 2
        assert torch.equal(small(ids()).logits, primary(ids()).logits)
        for weight in small.parameters():
            weight.zero_()
        assert primary.get_input_embeddings().weight.any()


@pytest.mark.parametrize("layers", [0, 4, (), (2, 1), (1, 1), (0, 3), (-1, 0)])
def test_layers_that_are_not_there_are_refused(layers):
    with pytest.raises(ValueError, match="layers must be some of 0 to 2 in rising order"):
        secondary_from(llama(3), layers)


# What is refused.


def test_models_that_do_not_fit():
    with pytest.raises(ValueError, match="secondary has a vocabulary of 67 tokens and the primary one of 61"):
        Tandem(llama(2), llama(1, vocab_size=67))
    model = llama(2)
    with pytest.raises(ValueError, match="secondary is the primary itself"):
        Tandem(model, model)
    with pytest.raises(ValueError, match="layers must hold 2 numbers from 0 to 3"):
        tandem(layers=(1, 4))
    with pytest.raises(ValueError, match="layers must hold 2 numbers from 1 to 3"):
        tandem(layers=(0, 3), reading="keys_values")
    with pytest.raises(ValueError, match="needs equal widths; the primary gives 64, the secondary takes 32"):
        tandem(start="identity")
    ours = NonetForCausalLM(NonetConfig(vocab_size=V, hidden_size=32, num_hidden_layers=2))
    with pytest.raises(ValueError, match="secondary NonetForCausalLM cannot read another model's states"):
        Tandem(model, ours)


def test_options_are_checked():
    for wrong, message in [
        ({"block": 0}, "block must be above zero"),
        ({"reading": "logits"}, "reading='logits' is not known; choose from states, keys_values"),
        ({"start": "zero"}, "start='zero' is not known"),
        ({"loss": "kl"}, "loss='kl' is not known"),
        ({"balance": 1.5}, "balance must lie between 0 and 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            TandemConfig(**wrong)


def test_what_training_cannot_use_is_refused():
    model, tokens = tandem(), ids()
    model.secondary.activation_checkpointing_enable()
    with pytest.raises(ValueError, match="the secondary uses gradient checkpointing"):
        model(tokens, labels=tokens)
    model.secondary.activation_checkpointing_disable()
    model.secondary.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match="attention 'flex_attention' takes no mask of blocks"):
        model(tokens, labels=tokens)


def test_a_secondary_whose_layers_cannot_read_is_refused():
    primary, secondary = llama(2), llama(1, seed=1)
    attention = secondary.model.layers[0].self_attn
    whole = attention.forward
    attention.forward = lambda *args, **kwargs: whole(*args, **kwargs | {CACHE: None})
    with pytest.raises(ValueError, match="do not hand keys and values to their cache"):
        Tandem(primary, secondary)


def test_a_readable_model_is_otherwise_its_own():
    secondary = llama(2, seed=1)
    names, tokens = set(secondary.state_dict()), ids()
    before = secondary(tokens).logits
    model = Tandem(llama(3), secondary)
    assert set(secondary.state_dict()) == names
    assert torch.equal(secondary(tokens).logits, before)
    assert type(secondary.model.layers[0]).__name__ == "LlamaDecoderLayer"
    again = copy.deepcopy(model)
    assert torch.equal(again(tokens).logits, model(tokens).logits)
    assert len(secondary(tokens, output_hidden_states=True).hidden_states) == 3
    twice = Tandem(llama(3), secondary)  # its layers are readable already
    assert torch.equal(twice(tokens).logits, model(tokens).logits)
