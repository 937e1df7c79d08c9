"""Drafting inside Transformers: custom_generate, and recurrent models that take tokens back."""

import copy

import pytest
import torch
from hf_models import make as make_mamba
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import nonet
from nonet.ecosystem import CACHE, returned_cache
from nonet.model import NonetConfig, NonetForCausalLM
from nonet.prompt import PromptTuning, add_prompt, remove_prompt
from nonet.tandem import Shortlist, Tandem, custom_generate, secondary_from, speculative_generate
from nonet.tandem.cache import RollbackLayer, restore, rollback_cache, snapshot
from nonet.tandem.runner import Runner

V, NEW = 61, 12


def llama(layers, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=V,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.15,
    )
    return LlamaForCausalLM(config).eval()


def own(pattern, seed=0, **fields):
    torch.manual_seed(seed)
    config = NonetConfig(
        pattern=pattern,
        tie_word_embeddings=False,  # tied, some repeat one token for ever
        vocab_size=V,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        initializer_range=0.2,
        **fields,
    )
    return NonetForCausalLM(config).eval()


def mistral(seed=0):
    torch.manual_seed(seed)
    config = MistralConfig(
        vocab_size=V,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=4,
        initializer_range=0.15,
    )
    return MistralForCausalLM(config).eval()


def mamba(seed=0):
    return make_mamba(seed=seed, tie_word_embeddings=False)  # as above


def accelerated(seed=0):
    return nonet.accelerate(mamba(seed))


TARGETS = {
    "nonet M": lambda: own("M"),
    "nonet G": lambda: own("G"),
    "nonet MF": lambda: own("MF"),
    "nonet L": lambda: own("L"),
    "mamba": mamba,
    "mamba, accelerated": accelerated,
    "sliding window": mistral,
}


def prompt(rows=1, length=7, seed=0):
    return torch.randint(3, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def alone(model, ids, **options):
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0} | options
    return model.generate(ids, **options)


# Recurrences and windows.


@pytest.mark.parametrize("name", TARGETS)
def test_a_recurrent_primary_writes_its_own_text(name):
    """Rejected tokens leave no trace in its state, and accepted ones do: with drafts that err ever more."""
    primary, ids = TARGETS[name](), prompt()
    expected, partly = alone(primary, ids), 0
    for noise in (0.0, 0.1, 0.2, 0.4, 0.8):
        draft = copy.deepcopy(primary)
        with torch.no_grad():
            for weight in draft.parameters():
                weight.add_(weight.std(correction=0) * torch.randn_like(weight), alpha=noise)
        out, stats = speculative_generate(
            primary, draft, ids, max_new_tokens=NEW, eos_token_id=(), return_stats=True
        )
        assert torch.equal(out, expected)
        assert stats.accepted == stats.drafted or noise
        partly += 0 < stats.accepted < stats.drafted
    assert partly


@pytest.mark.parametrize("name", TARGETS)
def test_going_back_is_exact(name):
    model, ids = TARGETS[name](), prompt(length=12)
    with torch.no_grad():
        straight = Runner(model, 4)
        straight.run(ids[:, :6], 1)
        expected = straight.run(ids[:, 6:9], 3)
        runner = Runner(model, 4)
        runner.run(ids[:, :6], 1)
        runner.mark()
        runner.run(ids[:, 8:12], 1)
        runner.rollback(6)
        assert torch.equal(runner.run(ids[:, 6:9], 3), expected)


def test_without_going_back_the_state_is_another():
    """So the tests above can fail."""
    model, ids = own("M"), prompt(length=12)
    with torch.no_grad():
        runner = Runner(model, 4)
        runner.run(ids[:, :6], 1)
        kept = snapshot(runner.cache)
        runner.run(ids[:, 8:12], 1)
        changed = runner.run(ids[:, 6:9], 3)
        restore(runner.cache, kept)
        assert not torch.equal(runner.run(ids[:, 6:9], 3), changed)


def test_mamba_of_transformers_continues_token_by_token():
    """Several tokens behind a cache would begin with an empty state there, and not in nonet's."""
    ids = prompt(length=9)
    for model, calls in ((mamba(), 4), (accelerated(), 2)):
        runner = Runner(model, 4)
        with torch.no_grad():
            runner.run(ids[:, :6], 1)
            runner.run(ids[:, 6:], 3)
        assert runner.calls == calls


@pytest.mark.parametrize("name", ["nonet MF", "sliding window"])
def test_only_layers_of_whole_attention_roll_back_by_length(name):
    cache = rollback_cache(TARGETS[name](), 8)
    kinds = [isinstance(layer, RollbackLayer) for layer in cache.layers]
    assert kinds == ([False, True] if name == "nonet MF" else [False, False])


@pytest.mark.parametrize("name", ["nonet M", "mamba, accelerated"])
def test_a_recurrent_draft_is_taken_back_too(name):
    primary, ids = llama(2), prompt()
    out = speculative_generate(primary, TARGETS[name](), ids, max_new_tokens=NEW, eos_token_id=())
    assert torch.equal(out, alone(primary, ids))


@pytest.mark.parametrize("name", ["nonet MF", "mamba, accelerated", "nonet F"])
def test_a_tandem_reads_any_primary(name):
    primary, ids = own("F") if name == "nonet F" else TARGETS[name](), prompt()
    model = Tandem(primary, llama(1, seed=3))
    assert torch.equal(model.generate(ids, max_new_tokens=NEW, eos_token_id=()), alone(primary, ids))
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert model.projections[0].weight.grad.abs().max() > 0


def test_a_primary_whose_states_cannot_be_had_is_refused():
    model = Tandem(own("F", residual="reversible"), llama(1, seed=3))
    with pytest.raises(ValueError, match=r"states at \[2\] cannot be read; use reading='keys_values'"):
        model.generate(prompt())


def test_a_recurrent_secondary_is_refused():
    for name in ("nonet M", "sliding window"):
        with pytest.raises(ValueError, match="has layers without full attention"):
            Tandem(llama(2), TARGETS[name]())


# Transformers' generate.


@pytest.mark.parametrize("how", ["tandem", "draft", "alone"])
def test_custom_generate_writes_what_generate_does(how):
    primary, ids = llama(3), prompt(2)
    ids[1, :2] = 0
    mask = (ids > 0).long()
    draft = llama(1, seed=3)
    function = {
        "tandem": lambda: Tandem(primary, draft).custom_generate,
        "draft": lambda: custom_generate(draft, block=3),
        "alone": lambda: custom_generate(None),
    }[how]()
    ends = [int(alone(primary, ids, attention_mask=mask)[0, 7 + 5])]
    for options in (
        {},
        {"eos_token_id": ends},
        {"repetition_penalty": 1.5},
        {"max_new_tokens": None, "max_length": 13},
        {"min_new_tokens": 9, "eos_token_id": ends},
        {"prefix_allowed_tokens_fn": lambda row, _: range(3, 20) if row else range(20, 60)},
    ):
        expected = alone(primary, ids, attention_mask=mask, **options)
        out = alone(primary, ids, attention_mask=mask, custom_generate=function, **options)
        assert torch.equal(out, expected), options
    out = alone(primary, ids[:1], custom_generate=function, return_dict_in_generate=True)
    assert torch.equal(out.sequences, alone(primary, ids[:1]))


def test_custom_generate_takes_its_own_arguments():
    primary, ids = llama(3), prompt()
    model = Tandem(primary, secondary_from(primary, 2))
    short = Shortlist(model.secondary, torch.arange(30))
    out = alone(primary, ids, custom_generate=model.custom_generate, block=2, shortlist=short)
    assert torch.equal(out, alone(primary, ids))


def test_custom_generate_of_a_recurrent_primary():
    primary, ids = accelerated(), prompt()
    out = alone(primary, ids, custom_generate=custom_generate(llama(1, seed=3)))
    assert torch.equal(out, alone(primary, ids))


def test_custom_generate_samples():
    primary, ids = llama(2), prompt()
    function = custom_generate(copy.deepcopy(primary))
    options = {"do_sample": True, "top_k": 3, "temperature": 0.8, "num_return_sequences": 3}
    torch.manual_seed(0)
    first = alone(primary, ids, custom_generate=function, **options)
    torch.manual_seed(0)
    again = alone(primary, ids, custom_generate=function, **options)
    assert torch.equal(first, again)
    assert first.shape == (3, 7 + NEW)
    assert len(first.unique(dim=0)) > 1
    with torch.no_grad():  # only the likeliest three were drawn
        likely = primary(first).logits[:, 6:-1].topk(3, -1).indices
    assert (likely == first[:, 7:, None]).any(-1).all()


@pytest.mark.parametrize(
    "settings",
    [{"repetition_penalty": 1.7}, {"no_repeat_ngram_size": 1}, {"suppress_tokens": [59]}],
    ids=str,
)
def test_the_primary_s_own_settings_count_as_in_generate(settings):
    primary, ids = llama(2), prompt()
    plain = alone(primary, ids)
    for name, value in settings.items():
        setattr(primary.generation_config, name, value)
    expected, draft = alone(primary, ids), llama(1, seed=3)
    assert not torch.equal(plain, expected)
    way = {"max_new_tokens": NEW, "eos_token_id": ()}
    assert torch.equal(speculative_generate(primary, draft, ids, **way), expected)
    assert torch.equal(Tandem(primary, draft).generate(ids, **way), expected)


def test_a_tandem_refuses_a_prompt_by_name():
    primary, ids = llama(2), prompt()
    tandem = Tandem(primary, llama(1, seed=3))
    add_prompt(primary, PromptTuning(3, start="random"))
    for call in (lambda: tandem.generate(ids, max_new_tokens=2), lambda: tandem(ids)):
        with pytest.raises(ValueError, match="the primary has a soft prompt"):
            call()
    remove_prompt(primary)
    assert torch.equal(tandem.generate(ids, max_new_tokens=NEW, eos_token_id=()), alone(primary, ids))


def test_custom_generate_says_what_it_cannot_do():
    primary, ids = llama(2), prompt()
    function = custom_generate(llama(1, seed=3))
    with pytest.raises(ValueError, match="num_beams=2"):
        alone(primary, ids, custom_generate=function, num_beams=2)
    with pytest.raises(ValueError, match="output_scores"):
        alone(primary, ids, custom_generate=function, return_dict_in_generate=True, output_scores=True)
    cache = returned_cache(primary(ids[:, :-1], use_cache=True))
    with pytest.raises(ValueError, match="cache holds tokens already"):
        alone(primary, ids, custom_generate=function, **{CACHE: cache})
    with pytest.raises(ValueError, match="the tandem's own primary"):
        alone(llama(2), ids, custom_generate=Tandem(primary, llama(1, seed=3)).custom_generate)
