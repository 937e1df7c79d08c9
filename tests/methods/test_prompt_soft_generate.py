"""``generate`` with a trained prompt, in its several ways, against a loop that knows of no cache."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from prompt_models import PROMPTS, add_prompt, make, padded, tokens
from transformers import DynamicCache

from nonet.ecosystem import CACHE, returned_cache
from nonet.prompt import remove_prompt

SERVED = [
    (kind, prompt)
    for kind in ("llama", "gpt2", "mistral", "nonet")
    for prompt in ("prompt", "prefix")
    if (kind, prompt) != ("nonet", "prefix")
]
NEW = 7
KEEP = {"do_sample": False, "max_new_tokens": NEW, "min_new_tokens": NEW}


def prompted(kind="llama", prompt="prompt"):
    return add_prompt(make(kind), PROMPTS[prompt])


def greedy_loop(model, ids, new=NEW):
    """Runs the whole text again for each token; the end of a text is not allowed."""
    with torch.no_grad():
        for _ in range(new):
            logits = model(ids, use_cache=False).logits[:, -1]
            logits[:, model.generation_config.eos_token_id] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
    return ids


@pytest.mark.parametrize(("kind", "prompt"), [*SERVED, ("llama", "lstm"), ("llama", "prefix mlp")])
def test_greedy_is_a_loop_without_a_cache(kind, prompt):
    model = prompted(kind, prompt)
    ids = tokens(2, 6)
    out = model.generate(ids, **KEEP)
    assert torch.equal(out, greedy_loop(model, ids))
    remove_prompt(model)
    assert not torch.equal(out, model.generate(ids, **KEEP)), "the prompt changes nothing here"


@pytest.mark.parametrize(("kind", "prompt"), SERVED)
def test_padded_batch_is_its_rows_alone(kind, prompt):
    model = prompted(kind, prompt)
    rows = [tokens(1, n, seed=n)[0] for n in (3, 8, 1)]
    ids, mask = padded(rows)
    out = model.generate(ids, attention_mask=mask, **KEEP)
    for i, row in enumerate(rows):
        assert torch.equal(out[i, 8 - len(row) :], greedy_loop(model, row[None])[0]), f"row {i}"


@pytest.mark.parametrize(("kind", "prompt"), SERVED)
def test_beams_are_those_without_a_cache(kind, prompt):
    model = prompted(kind, prompt)
    ids, mask = padded([tokens(1, n, seed=n)[0] for n in (3, 8)])
    out, alone = (
        model.generate(ids, attention_mask=mask, num_beams=3, use_cache=cache, **KEEP)
        for cache in (True, False)
    )
    assert torch.equal(out, alone)


@pytest.mark.parametrize(("kind", "prompt"), SERVED)
def test_samples_are_those_without_a_cache(kind, prompt):
    model = prompted(kind, prompt)
    ids = tokens(3, 5)
    drawn = []
    for cache in (True, False, True):
        torch.manual_seed(3 if len(drawn) < 2 else 4)
        drawn.append(model.generate(ids, do_sample=True, max_new_tokens=NEW, use_cache=cache))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("kind", "prompt"), SERVED)
@pytest.mark.parametrize("whole", [True, False], ids=["all tokens", "new tokens"])
def test_a_cache_is_continued(kind, prompt, whole):
    """As in a dialogue: the first answer's cache, and more tokens behind it."""
    model = prompted(kind, prompt)
    ids, mask = padded([tokens(1, n, seed=n)[0] for n in (3, 8)])
    first = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **KEEP)
    more = torch.cat([first.sequences, tokens(2, 4, seed=9)], 1)
    mask = torch.cat([mask, mask.new_ones(2, NEW + 4)], 1)
    fresh = model.generate(more, attention_mask=mask, **KEEP)
    lacking = more if whole else more[:, 8 + NEW - 1 :]
    out = model.generate(lacking, attention_mask=mask, **{CACHE: returned_cache(first)}, **KEEP)
    assert torch.equal(out[:, -NEW:], fresh[:, -NEW:])


@pytest.mark.parametrize("prompt", ["prompt", "prefix"])
def test_a_cache_is_continued_without_padding(prompt):
    model = prompted("llama", prompt)
    ids = tokens(1, 6)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(ids, **{CACHE: cache})
    more = torch.cat([ids, tokens(1, 3, seed=9)], 1)
    assert torch.equal(model.generate(more, **{CACHE: cache}, **KEEP), greedy_loop(model, more))


@pytest.mark.parametrize(("kind", "prompt"), SERVED)
def test_prefill_in_chunks(kind, prompt):
    model = prompted(kind, prompt)
    ids, mask = padded([tokens(1, n, seed=n)[0] for n in (7, 9)])
    whole = model.generate(ids, attention_mask=mask, **KEEP)
    assert torch.equal(model.generate(ids, attention_mask=mask, prefill_chunk_size=4, **KEEP), whole)


def test_a_chunk_of_padding_alone_is_refused():
    model = prompted()
    ids, mask = padded([tokens(1, n, seed=n)[0] for n in (3, 9)])
    with pytest.raises(ValueError, match="a larger prefill_chunk_size"):
        model.generate(ids, attention_mask=mask, prefill_chunk_size=4, **KEEP)


@pytest.mark.parametrize("prompt", ["prompt", "prefix"])
def test_embeddings_in_place_of_tokens(prompt):
    model = prompted("llama", prompt)
    ids, mask = padded([tokens(1, n, seed=n)[0] for n in (7, 9)])
    x = model.get_input_embeddings()(ids)
    whole = model.generate(ids, attention_mask=mask, **KEEP)
    assert torch.equal(model.generate(inputs_embeds=x, attention_mask=mask, **KEEP), whole[:, 9:])


@pytest.mark.parametrize("prompt", ["prompt", "prefix"])
def test_drafts_from_the_text_itself(prompt):
    """Assisted decoding takes tokens back from the cache."""
    model = prompted("llama", prompt)
    ids = tokens(1, 4).repeat(1, 3)
    out = model.generate(ids, do_sample=False, max_new_tokens=12, prompt_lookup_num_tokens=3)
    assert torch.equal(out, model.generate(ids, do_sample=False, max_new_tokens=12))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral"])
def test_static_cache(kind):
    ids, mask = padded([tokens(1, n, seed=n)[0] for n in (7, 9)])
    model = prompted(kind, "prefix")
    whole = model.generate(ids, attention_mask=mask, **KEEP)
    assert torch.equal(model.generate(ids, attention_mask=mask, cache_implementation="static", **KEEP), whole)
    model = prompted(kind, "prompt")
    with pytest.raises(ValueError, match="static caches, which are not served"):
        model.generate(ids, attention_mask=mask, cache_implementation="static", **KEEP)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_threads_share_a_model(prompt):
    """Each in a pass of its own: some begin a text while others continue one."""
    model = prompted("llama", prompt)
    texts = [tokens(1, length, seed=length) for length in range(2, 14)]
    expected = [model.generate(ids, **KEEP) for ids in texts]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda ids: model.generate(ids, **KEEP), texts))
    assert all(map(torch.equal, found, expected))
