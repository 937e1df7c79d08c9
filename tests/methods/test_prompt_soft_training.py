"""Training a prompt, taking it out, copying it."""

import copy

import pytest
import torch
from prompt_models import PROMPTS, assert_same, make, oracle, padded, pair, tokens
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

from nonet.prompt import add_prompt, remove_prompt
from nonet.testing import assert_within_rounding


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_gradients_are_the_plain_model_s(prompt, kind):
    bare, model = pair(kind, prompt)
    bare.requires_grad_(False)
    ids = tokens()
    prompts = list(model.soft_prompt.parameters())
    assert all(p.requires_grad for p in prompts)
    ours = torch.autograd.grad(model(ids, labels=ids).loss, prompts)
    logits = oracle(bare, model, ids).logits
    theirs = torch.autograd.grad(cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()), prompts)
    for one, other in zip(ours, theirs, strict=True):
        assert one.abs().max() > 0
        assert_same(one, other, "gradient")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_only_the_prompt_is_trained(prompt):
    _, model = pair("llama", prompt)
    ids = tokens()
    model(ids, labels=ids).loss.backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith("soft_prompt.")}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
@pytest.mark.parametrize("prompt", ["prompt", "lstm", "prefix", "prefix mlp"])
def test_checkpointing_leaves_gradients_alone(prompt, kind, reentrant):
    _, model = pair(kind, prompt)
    ids, mask = padded([tokens(1, n, seed=n)[0] for n in (6, 9)])
    prompts = list(model.soft_prompt.parameters())

    def gradients():
        model.zero_grad()
        model(ids, attention_mask=mask, labels=ids).loss.backward()
        return [p.grad.clone() for p in prompts]

    model.train()
    plain = gradients()
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    calls = []
    layer = next(
        m for m in model.modules() if getattr(m, "gradient_checkpointing", None) and m is not model.base_model
    )
    attention = next(m for m in layer.modules() if getattr(m, "layer_idx", None) is not None)
    attention.register_forward_hook(lambda *_: calls.append(1))
    again = gradients()
    assert len(calls) == 2, "the layer was not run again"
    for one, other in zip(again, plain, strict=True):
        assert_same(one, other, "gradient")


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_few_steps_lower_the_loss(prompt):
    _, model = pair("llama", prompt, torch.float32)
    ids = tokens(4, 12)
    optimizer = torch.optim.Adam(model.soft_prompt.parameters(), lr=0.05)
    losses = []
    for _ in range(25):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def trainer(model, folder, **options):
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=0.01,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    rows = [{"input_ids": row, "labels": row} for row in tokens(4, 12)]
    return Trainer(model, arguments, train_dataset=rows)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("prompt", ["lstm", "prefix mlp"])
def test_trainer_takes_a_step(prompt, checkpointing, tmp_path):
    bare, model = pair("llama", prompt, torch.float32)
    before = [p.clone() for p in model.soft_prompt.parameters()]
    options = {"max_steps": 2, "save_strategy": "no", "activation_checkpointing": checkpointing}
    trainer(model, tmp_path, **options).train()
    assert any(not torch.equal(p, old) for p, old in zip(model.soft_prompt.parameters(), before, strict=True))
    remove_prompt(model)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), bare.parameters(), strict=True))


@pytest.mark.parametrize("prompt", ["mlp", "prefix"])
def test_trainer_goes_on_from_a_checkpoint(prompt, tmp_path):
    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 2}
    _, whole = pair("llama", prompt, torch.float32)
    trainer(whole, tmp_path, **options).train()
    _, resumed = pair("llama", prompt, torch.float32)
    trainer(resumed, tmp_path, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for one, other in zip(whole.soft_prompt.parameters(), resumed.soft_prompt.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("prompt", ["prefix", "prefix mlp"])
def test_a_prefix_is_read_at_every_call(prompt, guard):
    """A write through ``.data``, as of a moving average, leaves no trace that a kept prefix could go by."""
    _, model = pair("llama", prompt)
    ids = tokens()
    with guard():
        first = model(ids).logits
        assert torch.equal(model(ids).logits, first)
    for p in model.soft_prompt.parameters():
        p.data.add_(0.5)
    with guard():
        second = model(ids).logits
    assert not torch.equal(first, second)
    assert_same(second, model(ids).logits)


# In and out.


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_removing_gives_the_old_model_back(kind, prompt):
    bare = make(kind)
    ids = tokens()
    next(iter(bare.parameters())).requires_grad_(False)
    flags = {name: p.requires_grad for name, p in bare.named_parameters()}
    state, expected = copy.deepcopy(bare.state_dict()), bare(ids).logits
    attributes = set(vars(bare))
    model = add_prompt(bare, PROMPTS[prompt])
    assert model is bare
    assert not torch.equal(model(ids).logits, expected)
    assert remove_prompt(model) is bare
    assert torch.equal(bare(ids).logits, expected)
    assert {name: p.requires_grad for name, p in bare.named_parameters()} == flags
    assert list(bare.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in bare.state_dict().items())
    assert set(vars(bare)) == attributes
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in bare.modules())
    add_prompt(bare, PROMPTS[prompt])  # and may come again


@pytest.mark.parametrize("prompt", ["prompt", "prefix"])
def test_a_copy_has_a_prompt_of_its_own(prompt):
    _, model = pair("llama", prompt)
    ids = tokens()
    other, expected = copy.deepcopy(model), model(ids).logits
    with torch.no_grad():
        other.soft_prompt.encoder.weight.add_(1.0)
    assert torch.equal(model(ids).logits, expected)
    assert not torch.equal(other(ids).logits, expected)
    remove_prompt(other)
    assert torch.equal(model(ids).logits, expected)
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (2, 11)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_seed_decides_and_nothing_else(prompt):
    config = PROMPTS[prompt]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    models = [add_prompt(make(), config)]
    torch.manual_seed(6)
    bare = make()
    state = torch.get_rng_state()
    models.append(add_prompt(bare, config))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(before, state)
    models.append(add_prompt(make(), type(config)(**(vars(config) | {"seed": 1}))))
    one, same, other = (model.soft_prompt.encoder() for model in models)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_mixed_precision(prompt):
    """Under autocast gradients of a prompt are in float32, and err no more than bfloat16 explains."""
    bare, model = pair("llama", prompt, torch.float32)
    bare.requires_grad_(False)
    ids = tokens()

    def gradients(logits, model):
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).to(model.dtype), ids[:, 1:].flatten())
        return torch.autograd.grad(loss, list(model.soft_prompt.parameters()))

    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = gradients(model(ids).logits, model)
    except RuntimeError as error:
        if "primitive descriptor for the LSTM" not in str(error):
            raise
        pytest.skip("PyTorch has no LSTM in bfloat16 on this processor")
    assert {grad.dtype for grad in found} == {torch.float32}
    bare, model = bare.double(), model.double()

    def plain():
        return gradients(oracle(bare, model, ids).logits, model)

    assert_within_rounding(found, plain, "gradient", torch.bfloat16)
