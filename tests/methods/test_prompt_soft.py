import copy

import pytest
import torch
from prompt_models import (
    INPUT,
    PREFIX,
    PROMPTS,
    P,
    assert_same,
    filled_cache,
    make,
    oracle,
    padded,
    pair,
    tokens,
)
from torch.nn.functional import cross_entropy
from transformers.cache_utils import DynamicCache

from nonet.ecosystem import CACHE, returned_cache
from nonet.lora import LoraConfig, add_lora, remove_lora
from nonet.prompt import PrefixTuning, PromptTuning, add_prompt, remove_prompt
from nonet.prompt.prefix import Prefix
from nonet.prompt.vectors import InputPrompt
from nonet.testing import assert_within_rounding

CAUSAL = ("llama", "gpt2", "qwen2")


# The outputs are the plain model's for the same prompt.


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_equals_the_plain_model(kind, prompt):
    bare, model = pair(kind, prompt)
    ids = tokens()
    assert_same(model(ids).logits, oracle(bare, model, ids).logits, "logits")
    assert model(ids).logits.shape == bare(ids).logits.shape


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prompt", ["prompt", "prefix mlp"])
def test_errs_no_more_than_the_plain_model(prompt, dtype, attention):
    """The prompt's numbers stay in float32; they meet the model in its own dtype."""
    bare, model = pair("llama", prompt, dtype, attn_implementation=attention)
    assert {p.dtype for p in model.soft_prompt.parameters()} == {torch.float32}
    ids = tokens()
    with torch.no_grad():
        out = model(ids).logits
        bare, model = bare.double(), model.double()
        assert out.dtype == dtype
        assert_within_rounding(out, lambda: oracle(bare, model, ids).logits, "logits")


def _no_shift(monkeypatch):
    monkeypatch.setattr(Prefix, "before", lambda self, body, args, kwargs: (args, kwargs))


def _swapped(monkeypatch):
    own = Prefix._keys_values
    monkeypatch.setattr(Prefix, "_keys_values", lambda self, layer: own(self, layer)[::-1])


def _next_layer(monkeypatch):
    own = Prefix._keys_values
    monkeypatch.setattr(Prefix, "_keys_values", lambda self, layer: own(self, 1 - layer))


def _unseen(monkeypatch):
    own = Prefix._causal
    monkeypatch.setattr(
        Prefix, "_causal", lambda self, x, size: own(self, x, size) & (torch.arange(P + size) > 0)
    )


def _future_seen(monkeypatch):
    own = Prefix._causal
    monkeypatch.setattr(Prefix, "_causal", lambda self, x, size: torch.ones_like(own(self, x, size)))


def _not_taken_away(monkeypatch):
    monkeypatch.setattr(InputPrompt, "_of_tokens", lambda self, value, added: value)


def _last_taken_away(monkeypatch):
    cut = slice(None, -P)
    monkeypatch.setattr(
        InputPrompt,
        "_of_tokens",
        lambda _, v, __: v[:, cut] if torch.is_tensor(v) and v.dim() == 3 else v,
    )


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ("prefix", _no_shift),
        ("prefix", _swapped),
        ("prefix", _next_layer),
        ("prefix", _unseen),
        ("prefix", _future_seen),
        ("prompt", _not_taken_away),
        ("prompt", _last_taken_away),
    ],
)
def test_planted_faults_are_noticed(prompt, fault, monkeypatch):
    bare, model = pair("gpt2", prompt)
    ids = tokens()
    assert_same(model(ids).logits, oracle(bare, model, ids).logits)
    model = copy.deepcopy(bare)
    fault(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):  # add_prompt itself finds some
        assert_same(add_prompt(model, PROMPTS[prompt])(ids).logits, oracle(bare, model, ids).logits)


# Padding.


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("kind", "prompt"),
    [("nonet", "prompt"), *((kind, p) for kind in (*CAUSAL, "mistral") for p in ("prompt", "mlp", "prefix"))],
)
def test_padded_rows_are_the_rows_alone(prompt, kind, side):
    _, model = pair(kind, prompt)
    rows = [tokens(1, n, seed=n)[0] for n in (4, 9, 1)]
    ids, mask = padded(rows, side)
    with torch.no_grad():
        out = model(ids, attention_mask=mask)
        for i, row in enumerate(rows):
            assert_same(out.logits[i, mask[i].bool()], model(row[None]).logits[0], f"row {i}")


@pytest.mark.parametrize("prompt", ["prompt", "prefix"])
def test_padding_at_the_wrong_places_is_noticed(prompt, monkeypatch):
    """The fault of ignoring where each row begins."""
    _, model = pair("gpt2", prompt)
    rows = [tokens(1, n, seed=n)[0] for n in (4, 9)]
    ids, mask = padded(rows)
    alone = model(rows[0][None]).logits[0]
    assert_same(model(ids, attention_mask=mask).logits[0, -4:], alone)
    places = torch.arange(9)[None].expand(2, -1)
    with pytest.raises(AssertionError):
        assert_same(model(ids, attention_mask=mask, position_ids=places).logits[0, -4:], alone)


def test_what_stands_in_padding_does_not_matter():
    for prompt in ("prompt", "prefix"):
        _, model = pair("llama", prompt)
        ids, mask = padded([tokens(1, 4)[0], tokens(1, 9)[0]])
        other = torch.where(mask.bool(), ids, 7)
        out, changed = (model(x, attention_mask=mask).logits[0, -4:] for x in (ids, other))
        assert torch.equal(out, changed)


# What a caller may give and ask.


@pytest.mark.parametrize("prompt", ["prompt", "prefix"])
def test_labels_are_those_of_tokens(prompt):
    _, model = pair("llama", prompt)
    ids = tokens()
    out = model(ids, labels=ids)
    loss = cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")
    assert_same(out.loss, loss / 16, "mean")
    assert_same(model(ids, labels=ids, num_items_in_batch=5).loss, loss / 5, "over a number of items")


@pytest.mark.parametrize("prompt", ["prompt", "prefix"])
def test_ways_to_call(prompt):
    _, model = pair("llama", prompt)
    ids = tokens()
    mask = torch.ones_like(ids)
    whole = model(ids).logits
    assert torch.equal(whole, model(input_ids=ids, use_cache=False).logits)
    assert_same(model(ids, mask).logits, whole, "positional mask")
    assert_same(model(ids, position_ids=torch.arange(9)[None]).logits, whole, "positions")
    assert_same(model(ids, mask, position_ids=torch.arange(9)[None]).logits, whole, "positions and mask")
    assert_same(model(inputs_embeds=model.get_input_embeddings()(ids)).logits, whole, "embeddings")
    assert_same(model(ids, logits_to_keep=2).logits, whole[:, -2:], "last two")
    assert_same(model(ids, logits_to_keep=torch.tensor([0, 4])).logits, whole[:, [0, 4]], "two places")
    assert torch.equal(model(ids, return_dict=False)[0], whole)
    assert torch.equal(model.base_model(ids, return_dict=False)[0], model.base_model(ids).last_hidden_state)


@pytest.mark.parametrize("prompt", ["prompt", "prefix"])
def test_hidden_states_and_attention_are_those_of_tokens(prompt):
    bare, model = pair("llama", prompt, attn_implementation="eager")
    ids = tokens()
    asked = {"output_hidden_states": True, "output_attentions": True}
    out, expected = model(ids, **asked), oracle(bare, model, ids, **asked)
    assert len(out.hidden_states) == len(expected.hidden_states) == 3
    for ours, theirs in zip(out.hidden_states, expected.hidden_states, strict=True):
        assert ours.shape == (2, 9, 64)
        assert_same(ours, theirs[:, -9:], "hidden states")
    for ours, theirs in zip(out.attentions, expected.attentions, strict=True):
        assert ours.shape == (2, 4, 9, P + 9)
        assert_same(ours, theirs[:, :, -9:], "attention")


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_pieces_are_the_whole(kind, prompt):
    """A cache is continued by one token and by several, whether or not there is padding."""
    _, model = pair(kind, prompt)
    ids, mask = padded([tokens(1, n, seed=n)[0] for n in (6, 9)])
    with torch.no_grad():
        whole = model(ids, attention_mask=mask).logits
        cache, seen, parts = DynamicCache(config=model.config), 0, []
        for size in (4, 1, 3, 1):
            piece = slice(seen, seen + size)
            seen += size
            out = model(ids[:, piece], attention_mask=mask[:, :seen], **{CACHE: cache})
            parts.append(out.logits)
    assert_same(torch.cat(parts, 1)[mask.bool()], whole[mask.bool()])
    assert cache.get_seq_length() == 9 + (P if prompt in INPUT else 0)


@pytest.mark.parametrize("prompt", PREFIX)
def test_prefix_is_seen_through_a_window(prompt):
    """Every query sees the prefix, and of the tokens those in the model's window."""
    bare, model = pair("mistral", prompt)
    ids = tokens()
    i, j = torch.arange(9)[:, None], torch.arange(9)
    mask = torch.cat([torch.ones(9, P, dtype=torch.bool), (j <= i) & (i - j < 5)], 1)[None, None]
    places = P + torch.arange(9)[None]
    expected = bare(ids, attention_mask=mask, position_ids=places, **{CACHE: filled_cache(model, 2)}).logits
    assert_same(model(ids).logits, expected)


def test_packed_rows_each_see_the_prefix():
    _, model = pair("llama", "prefix")
    first, second = tokens(1, 4)[0], tokens(1, 5, seed=1)[0]
    places = torch.cat([torch.arange(4), torch.arange(5)])[None]
    out = model(torch.cat([first, second])[None], position_ids=places, use_cache=False).logits[0]
    assert_same(out[:4], model(first[None]).logits[0])
    assert_same(out[4:], model(second[None]).logits[0])


# Encoders.


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_masked_models(kind, prompt):
    bare, model = pair(kind, prompt)
    ids, mask = tokens(), torch.ones(2, 9, dtype=torch.long)
    out = model(ids).logits
    assert_same(model(ids, attention_mask=mask, token_type_ids=0 * ids).logits, out)
    if prompt in INPUT:
        assert_same(out, oracle(bare, model, ids).logits)
    else:
        seen = torch.ones(2, P + 9, dtype=torch.long)
        hidden = bare.base_model(ids, attention_mask=seen, **{CACHE: filled_cache(model, 2)})
        head = bare.cls if kind == "bert" else bare.lm_head
        assert_same(out, head(hidden.last_hidden_state))
    rows = [tokens(1, n, seed=n)[0] for n in (4, 9)]
    ids, mask = padded(rows, "right", pad=model.config.pad_token_id)
    out = model(ids, attention_mask=mask).logits
    for i, row in enumerate(rows):
        assert_same(out[i, : len(row)], model(row[None]).logits[0])


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prompt", PREFIX)
def test_deep_prompts_for_a_classifier(prompt, attention):
    bare, model = pair("bert classifier", prompt, attn_implementation=attention)
    ids, mask = tokens(), torch.ones(2, P + 9, dtype=torch.long)
    hidden = bare.bert(ids, attention_mask=mask, **{CACHE: filled_cache(model, 2)})
    assert_same(model(ids).logits, bare.classifier(hidden.pooler_output))
    model.classifier.requires_grad_(True)
    model(ids, labels=torch.tensor([0, 2])).loss.backward()
    assert model.classifier.weight.grad is not None


@pytest.mark.parametrize("prompt", ["prompt", "prefix"])
def test_a_causal_classifier_reads_the_last_token(prompt):
    _, model = pair("llama classifier", prompt)
    rows = [tokens(1, n, seed=n)[0] for n in (4, 9)]
    ids, mask = padded(rows, "right")
    out = model(ids, attention_mask=mask).logits
    assert_same(out, torch.cat([model(row[None]).logits for row in rows]))


# What is refused.


@pytest.mark.parametrize(
    ("make_call", "error", "message"),
    [
        (lambda: PromptTuning(length=0), ValueError, "length must be above zero; got 0"),
        (lambda: PromptTuning(start="best"), ValueError, "start='best' is not known"),
        (lambda: PromptTuning(text="x"), ValueError, "text has no effect with start='vocabulary'"),
        (lambda: PromptTuning(start="labels", text="x"), TypeError, "text must be a tuple"),
        (lambda: PrefixTuning(hidden=0), ValueError, "hidden must be above zero"),
        (lambda: type(INPUT["mlp"])(layers=3), ValueError, "layers counts those of an LSTM"),
        (
            lambda: add_prompt(torch.nn.Linear(1, 1), INPUT["prompt"]),
            TypeError,
            "PreTrainedModel; got Linear",
        ),
        (lambda: add_prompt(make(), "prompt"), TypeError, "config must be a PromptTuning"),
        (lambda: add_prompt(pair()[1], INPUT["prompt"]), ValueError, "has a prompt already"),
        (lambda: remove_prompt(make()), ValueError, "has no prompt"),
        (lambda: add_prompt(make(), PromptTuning(start="text")), ValueError, "start='text' needs text"),
        (
            lambda: add_prompt(make(), PromptTuning(start="text", text="a")),
            ValueError,
            "start='text' needs tokenizer",
        ),
        (
            lambda: add_prompt(make("nonet"), PREFIX["prefix"]),
            ValueError,
            "to a cache; 0 were found",
        ),
        (lambda: add_prompt(make("bert classifier"), INPUT["prompt"]), ValueError, "its pooler reads"),
        (
            lambda: add_prompt(make(attn_implementation="flex_attention"), PREFIX["prefix"]),
            ValueError,
            "attn_implementation='flex_attention'",
        ),
    ],
)
def test_wrong_use_is_refused(make_call, error, message):
    with pytest.raises(error, match=message):
        make_call()


def test_a_refused_model_is_left_alone():
    model = make("nonet")
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(ValueError, match="0 were found"):
        add_prompt(model, PREFIX["prefix"])
    assert [p.requires_grad for p in model.parameters()] == flags
    assert not hasattr(model, "soft_prompt")


def test_wrong_calls_are_refused():
    bare, model = pair()
    ids = tokens()
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="must cover 0 cached and 9 new tokens; got 8"):
        model(ids, attention_mask=torch.ones(2, 8))
    with pytest.raises(ValueError, match=r"must be \(batch, length\)"):
        model(ids, attention_mask=torch.ones(2, 1, 9, 9))
    with pytest.raises(ValueError, match=r"position_ids must be \(batch, 9\)"):
        model(ids, position_ids=torch.arange(8)[None])
    with pytest.raises(ValueError, match="sequences are packed"):
        model(ids, position_ids=torch.tensor([[0, 1, 2, 3, 0, 1, 2, 3, 4]]))
    cache = returned_cache(bare(ids[:, :2], use_cache=True))
    with pytest.raises(ValueError, match="it was begun without the prompt"):
        model(ids, **{CACHE: cache})
    _, model = pair("llama", "prefix")
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model()
    model.set_attn_implementation("flex_attention")
    with pytest.raises(ValueError, match="attn_implementation='flex_attention'"):
        model(ids)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_under_an_adapter_is_removed_after_it(prompt):
    bare, model = pair("llama", prompt)
    flags = [p.requires_grad for p in bare.parameters()]
    add_lora(model, LoraConfig(rank=2))
    with pytest.raises(ValueError, match="first remove what was added to the model after the prompt"):
        remove_prompt(model)
    remove_prompt(remove_lora(model))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(model(tokens()).logits, bare(tokens()).logits)
