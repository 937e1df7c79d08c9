"""Prompts and drafts in many families of models: served as the plain model would, or refused by name."""

import copy
import functools

import pytest
import torch
from families import CAUSAL, MASKED, NO_DRAFT, NO_MASKED_PROMPT, NO_PREFIX, NO_PROMPT, V, make, tokens
from hf_models import assert_same
from peft import PeftModel
from transformers import DynamicCache

from nonet.ecosystem import cache_argument
from nonet.hf import save_adapter
from nonet.prompt import PrefixTuning, PromptTuning, add_prompt, remove_prompt
from nonet.tandem import speculative_generate

P = 3
PROMPT, PREFIX = PromptTuning(P, start="random"), PrefixTuning(P, start="random")


@pytest.fixture(scope="module", params=CAUSAL)
def causal(request):
    return request.param, make(request.param)


@pytest.fixture(scope="module", params=MASKED)
def masked(request):
    return request.param, make(request.param, causal=False)


def served(family, model, may_be_refused, call):
    """What a call returns, or None where the model is refused by name."""
    try:
        return call()
    except ValueError as error:
        if family in may_be_refused and type(model).__name__ in str(error):
            return None
        raise


def prompted(family, model, config, may_be_refused):
    """A copy of the model with the prompt, or None."""
    return served(family, model, may_be_refused, lambda: add_prompt(copy.deepcopy(model), config))


def write(model, **options):
    return model.generate(tokens(), max_new_tokens=8, do_sample=False, pad_token_id=0, **options)


@torch.no_grad()
def assert_read(model, bare):
    """The prompt is read as vectors that the plain model is given."""
    ids = tokens()
    x = bare.get_input_embeddings()(ids)
    vectors = model.soft_prompt.encoder().to(x.dtype)[None]
    expected = bare(inputs_embeds=torch.cat([vectors, x], 1)).logits[:, P:]
    assert_same(model(ids).logits, expected, "logits")
    assert torch.equal(remove_prompt(copy.deepcopy(model))(ids).logits, bare(ids).logits)


def test_a_prompt_is_read(causal):
    family, bare = causal
    if model := prompted(family, bare, PROMPT, NO_PROMPT):
        assert_read(model, bare)
        assert torch.equal(write(model), write(model, use_cache=False))


def test_a_prompt_is_read_by_a_masked_model(masked):
    family, bare = masked
    if model := prompted(family, bare, PROMPT, NO_MASKED_PROMPT):
        assert_read(model, bare)


@torch.no_grad()
def test_a_prefix_is_read(causal):
    """As the cache of a text that stood before, in which no window ends here."""
    family, bare = causal
    if model := prompted(family, bare, PREFIX, NO_PREFIX):
        prompt, cache, ids = model.soft_prompt, DynamicCache(config=bare.config), tokens(5)
        rows = prompt.encoder().view(P, -1, 2, prompt.heads, prompt.head_dim).permute(1, 2, 3, 0, 4)
        for layer, (keys, values) in enumerate(rows):
            cache.update(keys[None], values[None], layer)
        places = prompt.first + P + torch.arange(5)[None]
        given = {"position_ids": places, **cache_argument(bare.forward, cache)}
        assert_same(model(ids).logits, bare(ids, **given).logits, "logits")
        assert torch.equal(write(model), write(model, use_cache=False))


@torch.no_grad()
def test_a_prefix_is_read_by_a_masked_model(masked):
    family, bare = masked
    if model := prompted(family, bare, PREFIX, MASKED):
        moved = (model(tokens()).logits - bare(tokens()).logits).norm()
        assert moved > bare(tokens()).logits.norm() / 100


def test_a_draft_changes_no_token(causal):
    """With a draft that errs now and then, on the plain model, behind a prompt and behind a prefix."""
    family, bare = causal
    draft = copy.deepcopy(bare)
    with torch.no_grad():
        for weight in draft.parameters():
            weight.add_(weight.std(correction=0) * torch.randn_like(weight), alpha=0.1)
    models = [bare, prompted(family, bare, PROMPT, NO_PROMPT), prompted(family, bare, PREFIX, NO_PREFIX)]
    way = {"max_new_tokens": 8, "block": 3, "pad_token_id": 0}
    for model in filter(None, models):
        call = functools.partial(speculative_generate, model, draft, tokens(), **way)
        out = served(family, model, NO_DRAFT, call)
        assert out is None or torch.equal(out, write(model))


@pytest.mark.filterwarnings("ignore:Position ids are not supported")  # by PEFT
@pytest.mark.parametrize("family", ["gemma", "gpt_neox", "opt", "phi3", "qwen3"])
def test_peft_reads_the_same_of_a_prompt(family, tmp_path):
    bare = make(family)
    model = add_prompt(copy.deepcopy(bare), PROMPT)
    save_adapter(model, tmp_path)
    other = PeftModel.from_pretrained(bare, tmp_path).eval()
    with torch.no_grad():
        assert_same(model(tokens()).logits, other(input_ids=tokens()).logits[:, -12:], "logits")


def test_most_families_are_served():
    for refused in (NO_PROMPT, NO_DRAFT):
        assert len(refused) < len(CAUSAL) / 8
    assert len(NO_PREFIX) < len(CAUSAL) / 2
    assert max(tokens(100).flatten()) < V
