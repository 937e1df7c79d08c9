"""What the vectors of prompt tuning are before training."""

import pytest
import torch
from prompt_models import GROUPED, assert_same, learned_tokenizer, make, tokens
from tokenizers.models import WordLevel
from torch.nn import Embedding, init
from transformers import GemmaConfig, GemmaForCausalLM

from nonet.prompt import PrefixTuning, PromptTuning, PTuning, add_prompt
from nonet.prompt.starts import FREQUENT, first_vectors, seeded


def test_a_start_is_what_the_embedding_gives_and_not_what_its_table_holds():
    """Gemma multiplies what it looks up."""
    torch.manual_seed(0)
    model = GemmaForCausalLM(GemmaConfig(**GROUPED, head_dim=16))
    tokenizer = learned_tokenizer()
    config = PromptTuning(length=2, start="text", text="good film")
    prompt = add_prompt(model, config, tokenizer).soft_prompt
    ids = torch.tensor(tokenizer("good film", add_special_tokens=False)["input_ids"])
    assert torch.equal(prompt.encoder(), model.get_input_embeddings()(ids))
    assert not torch.equal(prompt.encoder(), model.get_input_embeddings().weight[ids])


def start(table, tokenizer=None, seed=0, **options):
    with seeded(seed):
        return first_vectors(PromptTuning(**options), Embedding.from_pretrained(table), tokenizer)


def ids_of(vectors, table):
    """The row of the table that each vector is."""
    same = (vectors[:, None] == table).all(-1)
    assert same.any(1).all(), "a vector is no row of the table"
    return same.int().argmax(1).tolist()


class Ranked:
    """A tokenizer of many tokens whose order tells their frequency, or does not."""

    def __init__(self, kind="BPE", size=FREQUENT + 500):
        self.size, self.all_special_ids = size, [0, 1, 7]
        self.backend_tokenizer = type("", (), {"model": type(kind, (), {})()})()

    def __len__(self):
        return self.size


def test_random_is_uniform_around_zero():
    vectors = start(torch.randn(5, 4000), start="random", length=3)
    assert vectors.shape == (3, 4000)
    assert -0.5 <= vectors.min() < -0.49
    assert 0.49 < vectors.max() < 0.5
    assert vectors.mean().abs() < 0.02


def test_vocabulary_takes_distinct_rows():
    table = torch.randn(30, 4)
    ids = ids_of(start(table, length=20), table)
    assert len(set(ids)) == 20
    assert ids != sorted(ids)
    assert len(ids_of(start(table, length=50), table)) == 50  # more than there are


@pytest.mark.parametrize(("kind", "frequent"), [("BPE", True), ("Unigram", True), ("WordPiece", False)])
def test_vocabulary_takes_frequent_tokens_where_the_order_tells(kind, frequent):
    table = torch.arange(FREQUENT + 1000.0)[:, None]
    ids = ids_of(start(table, Ranked(kind), length=FREQUENT - 10), table)
    assert not {0, 1, 7} & set(ids), "special tokens"
    assert max(ids) < FREQUENT + 500, "rows that no token has"
    assert (max(ids) < FREQUENT + 3) == frequent


def test_text_is_repeated_up_to_the_length():
    tokenizer = learned_tokenizer()
    table = torch.randn(len(tokenizer), 4)
    text = tokenizer("a good film")["input_ids"]
    assert len(text) > 1
    for length in (2, len(text), 2 * len(text) + 1):
        ids = ids_of(start(table, tokenizer, start="text", text="a good film", length=length), table)
        assert ids == (text * 3)[:length]


def test_labels_are_means_and_the_rest_is_sampled():
    tokenizer = learned_tokenizer()
    table = torch.randn(len(tokenizer), 4)
    words = ("good", "sportfilm")
    pieces = tokenizer("sportfilm")["input_ids"]
    assert len(pieces) > 1
    vectors = start(table, tokenizer, start="labels", text=words, length=5)
    assert torch.equal(vectors[0], table[tokenizer("good")["input_ids"]].mean(0))
    assert torch.equal(vectors[1], table[pieces].mean(0))
    assert len(set(ids_of(vectors[2:], table))) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": "labels", "text": ("a", "b", "c"), "length": 2}, "holds 3 labels; length=2"),
        ({"start": "text", "text": ""}, "text='' has no tokens"),
        ({"start": "labels", "text": ("good", " ")}, "text=' ' has no tokens"),
        ({"start": "labels"}, "start='labels' needs text; got None"),
    ],
)
def test_texts_that_give_no_start(options, message):
    tokenizer = learned_tokenizer()
    with pytest.raises(ValueError, match=message):
        start(torch.randn(len(tokenizer), 4), tokenizer, **options)


def test_a_tokenizer_of_words_serves_too():
    tokenizer = learned_tokenizer(WordLevel(unk_token="[UNK]"))
    model = add_prompt(make(), PromptTuning(length=4, start="text", text="good film"), tokenizer)
    table = model.get_input_embeddings().weight
    assert (
        ids_of(model.soft_prompt.encoder().to(table.dtype), table) == tokenizer("good film")["input_ids"] * 2
    )


def test_a_half_precision_table_starts_a_prompt_in_full_precision():
    model = add_prompt(make(dtype=torch.bfloat16), PromptTuning(length=4))
    assert model.soft_prompt.encoder.weight.dtype == torch.float32
    ids_of(model.soft_prompt.encoder.weight.bfloat16(), model.get_input_embeddings().weight)


@pytest.mark.parametrize("hidden", [None, 16])
def test_a_prefix_starts_as_an_embedding_does(hidden):
    model = add_prompt(make(), PrefixTuning(length=40, hidden=hidden, start="random"))
    encoder = model.soft_prompt.encoder
    drawn = encoder.weight if hidden is None else encoder.embedding.weight
    assert 0.9 < drawn.std() < 1.1
    assert encoder().shape == (40, 2 * 2 * 2 * 16)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2"])
def test_a_prefix_of_a_text_reads_as_the_text_does(kind):
    bare, tokenizer, ids = make(kind), learned_tokenizer(), tokens()
    text = tokenizer("a good film")["input_ids"]
    config = PrefixTuning(length=len(text), start="text", text="a good film")
    model = add_prompt(make(kind), config, tokenizer)
    whole = torch.cat([torch.tensor(text).expand(len(ids), -1), ids], 1)
    assert_same(model(ids).logits, bare(whole).logits[:, len(text) :])
    assert not model.training


def test_a_prefix_of_sampled_tokens_follows_from_the_seed_and_serves_encoders_too():
    first, again, other = (
        add_prompt(make("bert").train(), PrefixTuning(length=4, seed=seed)).soft_prompt.encoder()
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == (4, 2 * 2 * 4 * 16)


@pytest.mark.parametrize("options", [{}, {"start": "text"}, {"start": "text", "hidden": 8}])
def test_a_text_that_would_be_ignored_or_is_missing_is_refused(options):
    text = {} if options == {"start": "text"} else {"text": "film"}
    with pytest.raises(ValueError, match="text"):
        add_prompt(make(), PrefixTuning(length=4, **options, **text), learned_tokenizer())


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_an_encoder_has_the_model_s_width_by_default(kind):
    encoder = add_prompt(make(), PTuning(length=4, encoder=kind)).soft_prompt.encoder
    assert encoder.embedding.weight.shape == (4, 64)
    assert encoder.mlp[0].in_features == (64 if kind == "mlp" else 128)
    assert encoder().shape == (4, 64)


def test_the_fault_of_untrained_rows_is_noticed():
    table = Embedding(9, 4).weight
    with pytest.raises(AssertionError, match="no row"):
        ids_of(init.normal_(torch.empty(2, 4)), table)
