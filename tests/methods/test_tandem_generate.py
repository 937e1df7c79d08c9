"""Generation: verified text is the primary's own, and unverified text is the oracle's."""

import copy

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteriaList,
)

from nonet.tandem import (
    Router,
    Shortlist,
    Tandem,
    TandemConfig,
    frequent_tokens,
    secondary_from,
    speculative_generate,
)
from nonet.tandem.reference import tandem_logits

V, NEW = 61, 14
GREEDY = {"max_new_tokens": NEW, "eos_token_id": ()}


def llama(layers, hidden=64, seed=0, vocab=V):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.15,
    )
    return LlamaForCausalLM(config).eval()


def gpt2(layers, hidden=32, seed=0):
    torch.manual_seed(seed)
    sizes = {"n_embd": hidden, "n_layer": layers, "n_head": 4, "n_positions": 64, "vocab_size": V}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.15, bos_token_id=0, eos_token_id=0)).eval()


def tandem(family=llama, **options):
    return Tandem(family(3), family(2, seed=1, hidden=32), TandemConfig(**options))


def reading_itself():
    """A tandem that drafts what its primary writes: its layers and what they read are the primary's."""
    primary = llama(3)
    options = TandemConfig(layers=(0, 1, 2), start="identity")
    return Tandem(primary, secondary_from(primary, 3), options)


def prompt(rows=1, length=6, seed=0):
    return torch.randint(1, V, (rows, length), generator=torch.Generator().manual_seed(seed))


def alone(model, ids, **options):
    return model.generate(ids, do_sample=False, pad_token_id=0, max_new_tokens=NEW, **options)


# Greedy text.


@pytest.mark.parametrize("family", [llama, gpt2])
@pytest.mark.parametrize("block", [0, 1, 4, 40])
def test_a_random_draft_writes_the_primarys_text(family, block):
    primary, ids = family(3), prompt()
    out, stats = speculative_generate(
        primary, family(1, seed=7), ids, block=block, return_stats=True, **GREEDY
    )
    assert torch.equal(out, alone(primary, ids, eos_token_id=None))
    assert stats.tokens == NEW
    assert stats.accepted <= stats.drafted
    assert (stats.drafted == 0) == (block == 0)


def test_without_a_draft_the_primary_writes_alone():
    primary, ids = llama(3), prompt()
    out, stats = speculative_generate(primary, None, ids, return_stats=True, **GREEDY)
    assert torch.equal(out, alone(primary, ids, eos_token_id=None))
    assert (stats.primary_calls, stats.secondary_calls, stats.rounds) == (NEW, 0, 0)


def test_a_perfect_draft_is_accepted_whole():
    primary, ids = llama(2), prompt()
    out, stats = speculative_generate(
        primary, copy.deepcopy(primary), ids, block=4, return_stats=True, **GREEDY
    )
    assert torch.equal(out, alone(primary, ids, eos_token_id=None))
    # One token of the prompt's pass, twice five, and a last round of the two that are drafted and one.
    assert (stats.rounds, stats.drafted_at, stats.accepted_at) == (3, [3, 3, 2, 2], [3, 3, 2, 2])
    assert (stats.primary_calls, stats.secondary_calls) == (4, 10)


@pytest.mark.parametrize("family", [llama, gpt2])
@pytest.mark.parametrize("reading", ["states", "keys_values"])
@pytest.mark.parametrize("block", [1, 3])
def test_a_tandem_writes_the_primarys_text(family, reading, block):
    model, ids = tandem(family, reading=reading), prompt()
    out, stats = model.generate(ids, block=block, return_stats=True, **GREEDY)
    assert torch.equal(out, alone(model.primary, ids, eos_token_id=None))
    assert stats.tokens == NEW
    assert not any(layer._forward_hooks for layer in model.primary.modules())


def test_a_tandem_that_reads_itself_is_always_right():
    model, ids = reading_itself(), prompt()
    out, stats = model.generate(ids, block=4, return_stats=True, **GREEDY)
    assert torch.equal(out, alone(model.primary, ids, eos_token_id=None))
    assert stats.accepted == stats.drafted == 10


def test_reading_nothing_is_noticed():
    """The test above can fail: with projections of zero the secondary is not the primary."""
    model, ids = reading_itself(), prompt()
    for projection in model.projections:
        projection.weight.data.zero_()
    _, stats = model.generate(ids, block=4, return_stats=True, **GREEDY)
    assert stats.accepted < stats.drafted


def test_a_shortlist_is_exact_and_drafts_from_it_alone():
    primary, ids = llama(3), prompt()
    draft = copy.deepcopy(primary)
    expected = alone(primary, ids, eos_token_id=None)
    used = expected[0, 6:].unique()
    out, full = speculative_generate(
        primary, draft, ids, shortlist=Shortlist(draft, used), return_stats=True, **GREEDY
    )
    assert torch.equal(out, expected)
    assert full.accepted == full.drafted
    few = Shortlist(draft, used[:2])
    out, stats = speculative_generate(primary, draft, ids, shortlist=few, return_stats=True, **GREEDY)
    assert torch.equal(out, expected)
    assert stats.accepted < stats.drafted
    model = tandem()
    short = Shortlist(model.secondary, torch.arange(20))
    assert torch.equal(
        model.generate(ids, shortlist=short, **GREEDY), alone(model.primary, ids, eos_token_id=None)
    )


def test_shortlist_scores_are_the_heads():
    model = llama(1)
    hidden = torch.randn(3, 64)
    scores = Shortlist(model, torch.tensor([5, 2, 9, 5])).scores(hidden)
    assert torch.isinf(scores).sum() == 3 * (V - 3)
    whole = model.lm_head(hidden)[:, [2, 5, 9]]
    assert torch.equal(scores[:, [2, 5, 9]].argsort(-1), whole.argsort(-1))
    with pytest.raises(ValueError, match="ids must hold tokens from 0 to 60; got 3 to 61"):
        Shortlist(model, torch.tensor([3, 61]))
    with pytest.raises(ValueError, match="got none"):
        Shortlist(model, torch.tensor([], dtype=torch.long))


def test_frequent_tokens_are_counted():
    ids = torch.tensor([[3, 3, 7, 1], [7, 3, -100, 0]])
    assert frequent_tokens(ids, 2).tolist() == [3, 7]
    assert frequent_tokens(ids, 9).tolist() == [0, 1, 3, 7]
    with pytest.raises(ValueError, match="size must be a whole number above zero"):
        frequent_tokens(ids, 0)
    with pytest.raises(ValueError, match="ids must hold a token to count"):
        frequent_tokens(ids[:0], 1)


# Ends, rows, and what else may be asked for.


@pytest.mark.parametrize("place", range(0, NEW, 3))
def test_text_ends_where_the_primary_ends_it(place):
    primary, ids = llama(3), prompt()
    ends = [int(alone(primary, ids, eos_token_id=None)[0, 6 + place])]
    expected = alone(primary, ids, eos_token_id=ends)
    for draft in (llama(1, seed=7), copy.deepcopy(primary)):
        out = speculative_generate(primary, draft, ids, max_new_tokens=NEW, eos_token_id=ends)
        assert torch.equal(out, expected)


@pytest.mark.parametrize("new", [1, 2, 3, 7])
def test_the_number_of_new_tokens_is_exact(new):
    model, ids = reading_itself(), prompt()
    whole = model.generate(ids, max_new_tokens=NEW, eos_token_id=())
    for verify in (True, False):
        out = model.generate(ids, max_new_tokens=new, eos_token_id=(), verify=verify)
        assert out.shape == (1, 6 + new)
    assert torch.equal(model.generate(ids, max_new_tokens=new, eos_token_id=()), whole[:, : 6 + new])


def test_stopping_criteria_are_asked_at_every_token():
    primary, ids = llama(3), prompt()

    class AfterNine(StoppingCriteriaList):
        def __call__(self, input_ids, scores, **kwargs):
            assert torch.equal(input_ids, expected[:, : input_ids.shape[1]])
            return torch.tensor([input_ids.shape[1] >= 9])

    expected = alone(primary, ids, eos_token_id=None)
    stop = StoppingCriteriaList([AfterNine()])
    out = speculative_generate(primary, copy.deepcopy(primary), ids, stopping_criteria=stop, **GREEDY)
    assert torch.equal(out, expected[:, :9])


@pytest.mark.parametrize("left", [0, 2])
def test_rows_are_those_alone(left):
    model, ids = tandem(), prompt(3, seed=4)
    mask = torch.ones_like(ids)
    mask[1, :left] = 0
    rows = [model.generate(row[keep.bool()][None], **GREEDY)[0] for row, keep in zip(ids, mask, strict=True)]
    ends = [int(rows[0][9])]  # ends one row early, and others perhaps
    out, stats = model.generate(
        ids, attention_mask=mask, max_new_tokens=NEW, eos_token_id=ends, pad_token_id=0, return_stats=True
    )
    for row, whole, given in zip(out, rows, ids, strict=True):
        new = whole[-NEW:].tolist()
        length = new.index(ends[0]) + 1 if ends[0] in new else NEW
        rest = out.shape[1] - 6 - length
        assert row.tolist() == given.tolist() + new[:length] + [0] * rest
    assert stats.tokens < 3 * NEW


def test_scores_are_processed_for_both_models():
    primary, ids = llama(3), prompt()
    processors = LogitsProcessorList(
        [RepetitionPenaltyLogitsProcessor(1.7), MinNewTokensLengthLogitsProcessor(6, 5, 3)]
    )
    expected = alone(primary, ids, eos_token_id=None, logits_processor=processors)
    assert not torch.equal(expected, alone(primary, ids, eos_token_id=None))
    draft = copy.deepcopy(primary)
    out, stats = speculative_generate(
        primary, draft, ids, logits_processor=processors, return_stats=True, **GREEDY
    )
    assert torch.equal(out, expected)
    assert stats.accepted == stats.drafted


class Listener:
    def __init__(self):
        self.heard, self.ended = [], False

    def put(self, value):
        self.heard.append(value.flatten().tolist())

    def end(self):
        self.ended = True


def test_a_streamer_hears_everything_once():
    model, ids, listener = tandem(), prompt(), Listener()
    out = model.generate(ids, streamer=listener, **GREEDY)
    assert listener.ended
    assert listener.heard[0] == ids[0].tolist()
    assert [token for tokens in listener.heard for token in tokens] == out[0].tolist()
    with pytest.raises(ValueError, match="streamer takes one row; got 2"):
        model.generate(prompt(2), streamer=listener)


def test_dropout_is_off_while_generating():
    torch.manual_seed(0)
    model = Tandem(gpt2(2), gpt2(1, seed=1)).train()
    ids = prompt()
    assert torch.equal(model.generate(ids, **GREEDY), alone(model.primary, ids, eos_token_id=None))
    assert model.secondary.training
    assert not model.primary.training


# Samples, whose distribution has a file of its own.


def test_samples_repeat_with_their_generator():
    model, ids = tandem(), prompt()

    def write(seed):
        generator = torch.Generator().manual_seed(seed)
        return model.generate(ids, do_sample=True, top_p=0.9, generator=generator, **GREEDY)

    assert torch.equal(write(1), write(1))
    assert not torch.equal(write(1), write(2))


# Without verification: the tandem's own text.


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("block", [1, 3])
def test_unverified_text_is_the_oracles(block, free):
    model, ids = tandem(), prompt()
    out, stats = model.generate(ids, block=block, verify=False, free_token=free, return_stats=True, **GREEDY)
    weights = [projection.weight for projection in model.projections]
    text = ids[0]
    with torch.no_grad():
        while len(text) < 6 + NEW:
            if free:
                text = torch.cat([text, model.primary(text[None]).logits[0, -1:].argmax(-1)])
            read = len(text) - 1
            for _ in range(block):
                logits = tandem_logits(
                    model.primary, model.secondary, text, 99, weights, model.projections.depths, first=read
                )
                text = torch.cat([text, logits[-1:].argmax(-1)])
    assert torch.equal(out[0], text[: 6 + NEW])
    assert stats.primary_calls == -(-NEW // (block + free))


def test_a_prompt_of_one_token():
    model, ids = tandem(), prompt(length=1)
    assert model.generate(ids, verify=False, free_token=False, **GREEDY).shape == (1, 1 + NEW)
    assert torch.equal(model.generate(ids, **GREEDY), alone(model.primary, ids, eos_token_id=None))


# Blocks whose length the router decides.


def test_a_router_decides_when_to_verify():
    model, ids = reading_itself(), prompt()
    model.router = Router(64)
    expected = alone(model.primary, ids, eos_token_id=None)
    for bias, longest in ((20.0, 1), (-20.0, 6)):  # sure to be far from the primary, and sure to be near
        model.router.outer.bias.data.fill_(bias)
        out, stats = model.generate(ids, block="adaptive", max_block=6, return_stats=True, **GREEDY)
        assert torch.equal(out, expected)
        assert len(stats.drafted_at) == longest


# What is refused.


def test_errors_name_what_is_wrong():
    primary, ids = llama(2), prompt()
    draft = llama(1, vocab=67)
    with pytest.raises(ValueError, match="draft has a vocabulary of 67 tokens and the primary one of 61"):
        speculative_generate(primary, draft, ids)
    with pytest.raises(ValueError, match="draft is the primary itself"):
        speculative_generate(primary, primary, ids)
    draft = llama(1)
    for wrong, message in [
        ({"max_new_tokens": 0}, "max_new_tokens must be above zero; got 0"),
        ({"block": -1}, "block must be a number of 0 or more; got -1"),
        ({"temperature": 0.5}, "temperature has a meaning with do_sample=True only"),
        ({"top_k": 3, "top_p": 0.5}, "top_k, top_p has a meaning"),
        ({"do_sample": True, "temperature": 0.0}, "temperature must be above zero"),
        ({"attention_mask": torch.ones(1, 3)}, r"attention_mask must have the shape of input_ids, \(1, 6\)"),
        ({"attention_mask": torch.arange(6)[None] < 4}, r"ones at the end of row 0"),
        (
            {"attention_mask": torch.zeros(1, 6)},
            r"ones at the end of row 0 and zeros before them alone; got \[0, 0",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            speculative_generate(primary, draft, ids, **wrong)
    with pytest.raises(ValueError, match=r"input_ids must be \(B, T\) of int64"):
        speculative_generate(primary, draft, ids[0])
    with pytest.raises(ValueError, match=r"input_ids must be .* got \(1, 0\)"):
        speculative_generate(primary, draft, ids[:, :0])
    with pytest.raises(ValueError, match="block must be a number of 1 or more with verify=False; got 0"):
        tandem().generate(ids, verify=False, block=0)
    with pytest.raises(ValueError, match="block must be a number of 0 or more; got 'long'"):
        tandem().generate(ids, block="long")
    with pytest.raises(ValueError, match="needs a router"):
        tandem().generate(ids, block="adaptive")
