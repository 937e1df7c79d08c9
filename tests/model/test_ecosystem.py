"""What Transformers, PEFT and lm-eval do with the model."""

import copy
import warnings

import pytest
import torch
from helpers import HYBRID, PATTERNS, TINY, assert_same, make, tokens
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from nonet.data import byte_tokenizer
from nonet.ecosystem import returned_cache
from nonet.model import (
    NonetConfig,
    NonetForCausalLM,
    NonetForSequenceClassification,
    count_parameters,
    matched,
)
from nonet.registry import parts
from nonet.slots import Context
from nonet.testing import assert_within_rounding
from nonet.testing.rounding import Wide

every_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
POSITIONS = [p.name for p in parts("position")]
LINEARS = [p.name for p in parts("linear")]
ENCODERS = {p.name: p.letter for p in parts("mixer") if p.bidirectional}


@every_pattern
@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_model_comes_back_equal(pattern, tied, tmp_path):
    model, ids = make(pattern, torch.float32, tie_word_embeddings=tied), tokens()
    model.save_pretrained(tmp_path)
    assert {f.suffix for f in tmp_path.iterdir()} == {".json", ".safetensors"}
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is NonetForCausalLM
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert (again.lm_head.weight is again.model.embed_tokens.weight) is tied


@pytest.mark.parametrize("position", POSITIONS)
def test_positions_are_right_just_after_loading(position, tmp_path):
    model, ids = make("F", torch.float32, position=position), tokens()
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("mixer", [n for n in PATTERNS if n != "hybrid"])
def test_every_mixer_works_with_every_position(mixer, position):
    model, ids = make(PATTERNS[mixer], position=position), tokens(length=50)
    with torch.no_grad():
        whole = model(ids, use_cache=False).logits
        cache = returned_cache(model(ids[:, :30]))
        assert_same(model(ids[:, 30:], cache=cache).logits, whole[:, 30:])


def test_auto_classes_know_the_architecture():
    config = AutoConfig.for_model("nonet", **TINY)
    assert type(config) is NonetConfig
    assert type(AutoModelForCausalLM.from_config(config)) is NonetForCausalLM
    encoder = AutoConfig.for_model("nonet", is_causal=False, **TINY)
    assert type(AutoModelForSequenceClassification.from_config(encoder)) is NonetForSequenceClassification
    assert type(AutoModel.from_config(config)).__name__ == "NonetModel"


def test_pickled_weights_are_never_read(tmp_path):
    model = make("F", torch.float32)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        NonetForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use_safetensors"):
        NonetForCausalLM.from_pretrained(tmp_path, use_safetensors=False)


def _same_gradients(model, plain):
    ids = tokens()
    for each in (model, plain):
        each(ids, labels=ids, use_cache=False).loss.backward()
    expected = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        assert_same(parameter.grad, expected[name].grad, name)


@every_pattern
def test_gradient_checkpointing_gives_the_same_gradients(pattern):
    plain = make(pattern).train()
    saving = copy.deepcopy(plain)
    saving.activation_checkpointing_enable()
    _same_gradients(saving, plain)


@pytest.mark.parametrize("linear", LINEARS)
@every_pattern
def test_every_parameter_gets_a_gradient(pattern, linear):
    model, ids = make(pattern, torch.float32, linear=linear).train(), tokens()
    model(ids, labels=ids).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not bool(p.grad.abs().any())]
    assert without == []


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own tracing
@every_pattern
def test_torch_compile_takes_the_whole_graph(pattern):
    model, ids = make(pattern), tokens()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_same(compiled(ids, use_cache=False).logits, model(ids, use_cache=False).logits)


@every_pattern
def test_reversible_layers_give_the_gradients_of_plain_autograd(pattern):
    model, ids = make(pattern, residual="reversible", num_hidden_layers=4).train(), tokens()
    weight = torch.randn(2, 70, 61, dtype=torch.float64)
    logits = model(ids).logits
    (logits * weight).sum().backward()
    # The plain computation of the same two streams.
    core, places = model.model, torch.arange(70)[None]
    context = Context(places=places, rotation=core.position.rotation(70), shared=core.shared)
    found = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    x1 = x2 = core.embed_tokens(ids)
    for layer in core.layers:
        x1 = x1 + layer.mix(x2, context)
        x2 = x2 + layer.feed(x1)
    plain = model.lm_head(core.norm((x1 + x2) / 2))
    (plain * weight).sum().backward()
    assert_same(logits.detach(), plain.detach())
    for name, parameter in model.named_parameters():
        assert_same(found[name], parameter.grad, name)


def test_a_cache_is_refused_where_layers_run_again():
    model, ids = make(residual="reversible"), tokens()
    with torch.no_grad():
        cache = returned_cache(model(ids))
    with pytest.raises(ValueError, match="run again for gradients"):
        model(ids, cache=cache)


@every_pattern
def test_reversible_models_generate(pattern):
    model, ids = make(pattern, residual="reversible"), tokens(length=20)
    with_cache, without = (
        model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=use) for use in (True, False)
    )
    assert torch.equal(with_cache, without)


class Text(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        ids = tokens(1, 24, seed=i)[0]
        return {"input_ids": ids, "labels": ids}


@every_pattern
def test_trainer_trains(pattern, tmp_path):
    model = make(pattern, torch.float32, initializer_range=0.02)
    arguments = TrainingArguments(
        str(tmp_path),
        max_steps=12,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        save_strategy="no",
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model, arguments, train_dataset=Text())
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0] - 0.1


def test_the_loss_counts_the_items_of_the_whole_batch():
    model, ids = make(), tokens()
    with Wide():
        mean = model(ids, labels=ids).loss
        double = model(ids, labels=ids, num_items_in_batch=torch.tensor(2 * 69 // 2)).loss
    assert_same(double.detach(), 2 * mean.detach())


@every_pattern
def test_peft_trains_an_adapter_on_top(pattern, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    base, ids = make(pattern), tokens()
    before = base(ids).logits
    model = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, target_modules="all-linear"))
    assert_same(model(ids).logits, before)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(2):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    after = model.eval()(ids).logits
    assert not torch.equal(after, before)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path)(ids).logits
    assert_same(loaded, after)


def test_peft_prompt_tuning_works_on_top():
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(
        make(HYBRID, torch.float32), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    )
    loss = model(input_ids=tokens(), labels=tokens()).loss
    loss.backward()
    assert model.prompt_encoder.default.embedding.weight.grad.abs().sum() > 0


def test_lm_eval_scores_the_model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lm-eval's own imports warn
        from lm_eval.api.instance import Instance
        from lm_eval.models.huggingface import HFLM

        model = make("F", torch.float32, vocab_size=257)
        tokenizer = byte_tokenizer()
        scorer = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=2, max_length=64)
        asked = [("the cat", " sat"), ("one two three", " four five")]
        requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(asked)]
        found = [value for value, _ in scorer.loglikelihood(requests, disable_tqdm=True)]

    def scores(model):
        values = []
        for context, continuation in asked:
            ids = torch.tensor([list((context + continuation).encode())])
            logp = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            values.append(logp[-len(continuation.encode()) :].sum())
        return torch.stack(values)

    wide = model.double()
    assert_within_rounding(torch.tensor(found), lambda: scores(wide), "log-likelihoods")


def test_pipelines_write_and_classify(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    make("F", torch.float32, vocab_size=257, pad_token_id=256, eos_token_id=256).save_pretrained(tmp_path)
    writer = pipeline("text-generation", model=str(tmp_path), device="cpu")
    out = writer("hello", max_new_tokens=4, do_sample=False)
    assert out[0]["generated_text"].startswith("hello")


@pytest.mark.parametrize("letter", ENCODERS.values(), ids=ENCODERS)
def test_classification_ignores_padding_on_either_side(letter):
    torch.manual_seed(0)
    fields = {**TINY, "initializer_range": 0.2, "is_causal": False, "num_labels": 3, "pattern": letter}
    model = NonetForSequenceClassification(NonetConfig(**fields)).double().eval()
    ids = tokens(2, 40)
    alone = model(ids).logits
    assert alone.shape == (2, 3)
    for side in ("left", "right"):
        junk = tokens(2, 11, seed=3)
        one = torch.ones_like(ids)
        pair = (
            ([junk, ids], [one[:, :11] * 0, one]) if side == "left" else ([ids, junk], [one, one[:, :11] * 0])
        )
        padded, mask = (torch.cat(x, 1) for x in pair)
        assert_same(model(padded, attention_mask=mask).logits, alone, f"{side} padding")
    model(ids, labels=torch.tensor([0, 2])).loss.backward()
    assert model.score.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "letter", [p.letter for p in parts("mixer") if not p.bidirectional], ids=lambda letter: letter
)
def test_a_mixer_that_is_only_causal_refuses_to_encode(letter):
    with pytest.raises(ValueError, match="cannot be bidirectional"):
        NonetConfig(pattern=letter, is_causal=False, **TINY)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hidden_size": "32"}, "hidden_size"),
        ({"pattern": "FQ"}, "must be spelled with the letters"),
        ({"pattern": ""}, "must be spelled"),
        ({"position": "absolute"}, "position='absolute' is not known; choose from"),
        ({"linear": "sparse"}, "linear='sparse' is not known"),
        ({"residual": "deep"}, "residual='deep' is not known"),
        ({"num_attention_heads": 5}, "num_attention_heads=5 must divide hidden_size=32"),
        ({"num_key_value_heads": 3}, "num_key_value_heads=3 must divide"),
        ({"hidden_size": 0}, "hidden_size must be above zero"),
        ({"options": {"flash": {"windoww": 3}}}, "options of mixer flash"),
        ({"options": {"flash": {"window": 0}}}, "window must be above zero"),
        ({"options": {"spam": {}}}, "options names spam"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_configuration_says_what_is_wrong(fields, message):
    with pytest.raises(ValueError, match=message):
        NonetConfig(**{**TINY, **fields})


def test_options_reach_the_mixer_and_survive_saving(tmp_path):
    model, ids = make("F", torch.float32, options={"flash": {"window": 4}}), tokens()
    assert not torch.equal(model(ids).logits, make("F", torch.float32)(ids).logits)
    model.save_pretrained(tmp_path)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, model(ids).logits)


@every_pattern
def test_models_are_matched_in_parameters(pattern):
    config = NonetConfig(pattern=pattern, **{**TINY, "hidden_size": 64})
    target = count_parameters(NonetConfig(**{**TINY, "hidden_size": 64, "intermediate_size": 192}))
    found = matched(config, target)
    assert count_parameters(found) == NonetForCausalLM(found).num_parameters()
    assert abs(count_parameters(found) / target - 1) < 0.05
    with pytest.raises(ValueError, match="too few"):
        matched(config, 1000)


@pytest.fixture
def poisoned_memory():
    """Fills fresh tensors with NaN."""
    mode = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(mode)


@pytest.mark.usefixtures("poisoned_memory")
@every_pattern
def test_buffers_that_a_checkpoint_lacks_are_made_again(pattern, tmp_path):
    model, ids = make(pattern, torch.float32), tokens()
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    buffers = {name for name, _ in model.named_buffers()}
    save_file({k: v for k, v in load_file(file).items() if k not in buffers}, file, metadata={"format": "pt"})
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids).logits, model(ids).logits)


@pytest.mark.usefixtures("poisoned_memory")
@every_pattern
def test_a_model_made_on_the_meta_device_gets_all_its_first_values(pattern):
    with torch.device("meta"):
        model = make(pattern, torch.float32)
    model.to_empty(device="cpu")
    model.apply(model._init_weights)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    for name, buffer in make(pattern, torch.float32).named_buffers():
        assert torch.equal(buffer, model.get_buffer(name))
