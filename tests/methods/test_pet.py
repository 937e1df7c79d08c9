import pytest
import torch
from common import assert_same
from peft import LoraConfig, get_peft_model
from pet_toys import PLACES, bert, byte_tokenizer, gpt2, llama, nonet, word_tokenizer
from torch.nn import functional as F
from transformers import T5Config, T5ForConditionalGeneration

from nonet.prompt import PET, Pattern, PrefixTuning, PromptTuning, Verbalizer, add_prompt
from nonet.prompt.reference import label_scores, label_words_loss
from nonet.testing.rounding import Wide

LENGTH = 40
EXAMPLES = [
    "the cat sleeps",
    "rain",
    "today the red bird sings well and the blue dog runs " * 5,
    "sun sun sun",
    "the dog runs in the rain today",
    "a green bird was red",
    "all was blue",
]
ONE_TOKEN = {"up": ["good"], "down": ["bad"], "none": ["red"]}
SEVERAL = {"up": ["good", "fine well"], "down": ["bad"], "none": ["it was red", "blue", "poor"]}


@pytest.fixture(scope="module")
def words():
    return word_tokenizer()


@pytest.fixture(scope="module")
def pieces():
    return byte_tokenizer()


def masked_pet(kind=PET, words=SEVERAL, template="it was {blank} news : {text} .", **options):
    tokenizer = word_tokenizer()
    return kind(
        bert(len(tokenizer)),
        tokenizer,
        Pattern(template),
        Verbalizer(words),
        **{"max_length": LENGTH, **options},
    )


def causal_pet(kind=PET, words=SEVERAL, template="{text} It was {blank}", model=llama, bos=False, **options):
    tokenizer = byte_tokenizer(bos)
    return kind(
        model(len(tokenizer)),
        tokenizer,
        Pattern(template),
        Verbalizer(words),
        **{"max_length": LENGTH, **options},
    )


def oracle(pet, examples=EXAMPLES):
    """Scores of the paper's definition, each text alone."""
    asked = (pet.model, pet.tokenizer, pet.pattern, pet.verbalizer)
    return torch.stack(
        [label_scores(*asked, x, causal=pet.causal, max_length=pet.max_length) for x in examples]
    )


@torch.no_grad()
def check_scores(pet):
    pet.model.double()
    with Wide():
        found, expected = pet.scores(EXAMPLES, batch=4), oracle(pet)
    assert_same(found, expected, "scores")


# Patterns.


def test_a_pattern_puts_every_field_and_the_blank_in_their_places(words):
    pattern = Pattern("{a} ? {blank} , {b} .")
    before, after = pattern.encode(words, {"a": "the cat", "b": "a dog runs", "label": "unused"})
    assert words.convert_ids_to_tokens(before) == ["[CLS]", "the", "cat", "?"]
    assert words.convert_ids_to_tokens(after) == [",", "a", "dog", "runs", ".", "[SEP]"]
    assert pattern.fields == ("a", "b")
    assert not pattern.ends_in_blank


def test_one_field_takes_a_text_and_may_be_used_twice(words):
    before, after = Pattern("{text} : {text} ( {blank} )").encode(words, "sun")
    assert words.decode(before) == "[CLS] sun : sun ("
    assert words.decode(after) == ") [SEP]"


def test_a_space_belongs_to_what_follows_it(pieces):
    pattern = Pattern("News: {text} It was {blank}")
    before, after = pattern.encode(pieces, "  the cat sleeps ")
    assert before == pieces("News: the cat sleeps It was")["input_ids"]
    assert after == []
    assert pattern.lead == " "
    assert Pattern("{text}:\n{blank}").lead == ""
    [[good], [bad]] = Verbalizer({"up": "good", "down": "bad"}).encode(pieces, pattern.lead)
    assert pieces.convert_ids_to_tokens([*good, *bad]) == ["Ġgood", "Ġbad"]


def test_an_empty_field_gives_no_token(pieces):
    before, _ = Pattern("{text} It was {blank}").encode(pieces, "")
    assert before == pieces(" It was")["input_ids"]


def test_braces_can_be_written(pieces):
    before, _ = Pattern("{{{text}}} is {blank}").encode(pieces, "sun")
    assert pieces.decode(before) == "{sun} is"


def test_first_tokens_of_the_tokenizer_stand_first():
    tokenizer = byte_tokenizer(bos=True)
    before, _ = Pattern("{text} It was {blank}").encode(tokenizer, "sun")
    assert before == tokenizer("sun It was")["input_ids"]
    assert before[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("room", [1, 3])
@pytest.mark.parametrize("max_length", [9, 13, 14, 20, 60])
@pytest.mark.parametrize("sizes", [(20, 5), (5, 20), (9, 9), (0, 30)])
def test_the_longest_field_is_cut_first_and_never_the_template(words, sizes, max_length, room):
    a, b = (["sun"] * sizes[0], ["rain"] * sizes[1])
    example = {"a": " ".join(a), "b": " ".join(b)}
    spare = max_length - 6 - room  # [CLS] it was , . [SEP]
    while len(a) + len(b) > spare:
        (a if len(a) >= len(b) else b).pop()
    before, after = Pattern("it was {blank} , {a} {b} .").encode(
        words, example, room=room, max_length=max_length
    )
    assert words.convert_ids_to_tokens(before) == ["[CLS]", "it", "was"]
    assert words.convert_ids_to_tokens(after) == [",", *a, *b, ".", "[SEP]"]
    assert len(before) + room + len(after) <= max_length


def test_what_is_cut_from_a_field_is_its_end(words):
    before, _ = Pattern("{text} {blank}").encode(words, "red green blue", max_length=5)
    assert words.decode(before) == "[CLS] red green"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{text} it was", "blank} once"),
        ("{text} {blank} {blank}", "blank} once"),
        ("it was {blank}", "a field"),
        ("{text", "malformed"),
        ("{} {blank}", "plain name"),
        ("{text:>3} {blank}", "plain name"),
        ("{a.b} {blank}", "plain name"),
    ],
)
def test_a_wrong_template_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        Pattern(template)


def test_wrong_examples_are_refused(words):
    both = Pattern("{a} {b} {blank}")
    with pytest.raises(ValueError, match="mapping with a, b"):
        both.encode(words, "sun")
    with pytest.raises(ValueError, match="the field 'b'; got 'a'"):
        both.encode(words, {"a": "sun"})
    with pytest.raises(TypeError, match="'b' of an example must be a text; got 3"):
        both.encode(words, {"a": "sun", "b": 3})
    with pytest.raises(ValueError, match=r"max_length=4 is too short .* takes 5 tokens"):
        Pattern("it was {blank} {text}").encode(words, "sun", max_length=4)


# Verbalizers.


def test_a_verbalizer_may_have_several_words_of_several_tokens(words):
    verbalizer = Verbalizer({"up": ["good", "good well"], "down": "bad"})
    assert verbalizer.labels == ("up", "down")
    coded = verbalizer.encode(words)
    assert [[words.decode(word) for word in several] for several in coded] == [["good", "good well"], ["bad"]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"up": ["good"]}, "two labels"),
        ({"up": [], "down": ["bad"]}, "words of the label 'up'"),
        ({"up": [" "], "down": ["bad"]}, "words of the label 'up'"),
        ({"up": [1], "down": ["bad"]}, "words of the label 'up'"),
    ],
)
def test_a_wrong_verbalizer_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        Verbalizer(given)


def test_words_that_the_tokenizer_does_not_tell_apart_are_refused(words):
    with pytest.raises(ValueError, match=r"'unheard' .* does not know"):
        Verbalizer({"up": "unheard", "down": "bad"}).encode(words)
    with pytest.raises(
        ValueError, match=r"'bad' of the label 'down' is the same .* 'bad ' of the label 'up'"
    ):
        Verbalizer({"up": ["good", "bad "], "down": "bad"}).encode(words)


# Scores.


@pytest.mark.parametrize("words", [ONE_TOKEN, SEVERAL], ids=["one token", "several"])
@pytest.mark.parametrize(
    "template", ["it was {blank} news : {text} .", "{text} ( {blank} )", "{blank} {text}"]
)
def test_scores_of_a_masked_model_are_the_papers(words, template):
    check_scores(masked_pet(words=words, template=template))


@pytest.mark.parametrize("words", [ONE_TOKEN, SEVERAL], ids=["one token", "several"])
@pytest.mark.parametrize("model", [llama, gpt2, nonet])
@pytest.mark.parametrize("bos", [False, True], ids=["bare", "bos"])
def test_scores_of_a_causal_model_are_the_papers(words, model, bos):
    check_scores(causal_pet(words=words, model=model, bos=bos))


def test_words_of_different_tokens_share_what_they_can():
    pet = causal_pet(words={"up": ["good", "it was fine"], "down": ["it was poor"]})
    assert len(pet._fillers) == 2  # nothing, and " it was"
    check_scores(pet)


class LaterBlank(PET):
    """Reads the place after the blank."""

    def _logits(self, rows, places):
        return super()._logits(rows, [(i, j + 1 if not self.causal else j - 1) for i, j in places])


class OtherSide(PET):
    """Pads on the side where the model's blank is."""

    def _inputs(self, rows):
        inputs = super()._inputs(rows)
        width = inputs["input_ids"].shape[1]
        for i, row in enumerate(rows):
            turn = (len(row) - width) if self.causal else (width - len(row))
            for name in ("input_ids", "attention_mask"):
                inputs[name][i] = inputs[name][i].roll(turn)
        return inputs


class PaddingIsSeen(PET):
    def _inputs(self, rows):
        inputs = super()._inputs(rows)
        inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
        return inputs


class PaddingIsCounted(PET):
    """Places that begin at the padding, not at the first token."""

    def _inputs(self, rows):
        inputs = super()._inputs(rows)
        inputs["position_ids"] = torch.arange(inputs["input_ids"].shape[1]).expand_as(inputs["input_ids"])
        return inputs


class SumOfWords(PET):
    """A label of more words counts more."""

    def _scores(self, sides):
        self._mean = self._mean.sign()
        return super()._scores(sides)


class FirstTokens(PET):
    """A word stands for its first token."""

    def _scores(self, sides):
        self._mean = self._mean * torch.tensor(
            [[j == 0] for _, j in map(self._places.__getitem__, self._place)]
        )
        return super()._scores(sides)


@pytest.mark.parametrize("fault", [LaterBlank, OtherSide, PaddingIsSeen, SumOfWords, FirstTokens])
@pytest.mark.parametrize("make", [masked_pet, causal_pet])
def test_a_planted_fault_is_rejected(make, fault):
    with pytest.raises(AssertionError, match="scores: "):
        check_scores(make(fault))


def test_places_counted_through_padding_are_rejected():
    with pytest.raises(AssertionError, match="scores: "):
        check_scores(causal_pet(PaddingIsCounted, model=gpt2))


def test_only_the_blank_meets_the_vocabulary():
    for pet in (masked_pet(words=ONE_TOKEN), causal_pet(words=ONE_TOKEN)):
        seen = []
        head = pet.model.get_output_embeddings()
        head.register_forward_hook(lambda _, args, out, seen=seen: seen.append(out[..., 0].numel()))
        pet.scores(EXAMPLES, batch=len(EXAMPLES))
        assert seen == [len(EXAMPLES)]


def test_a_head_that_cannot_be_reached_gives_every_logit(monkeypatch):
    pet = masked_pet()
    monkeypatch.setattr(pet.model, "get_output_embeddings", lambda: None)
    check_scores(pet)


def test_a_model_in_pefts_wrapper_is_scored_as_it_is():
    pet = causal_pet()
    pet.model.double()
    plain = pet.scores(EXAMPLES)
    wrapped = get_peft_model(pet.model, LoraConfig(r=2, target_modules=["q_proj"])).double()
    again = PET(wrapped, pet.tokenizer, pet.pattern, pet.verbalizer, max_length=LENGTH)
    assert again.causal
    assert_same(again.scores(EXAMPLES), plain)
    again.loss(EXAMPLES[:2], ["up", "down"]).backward()
    assert {name.split(".")[-3] for name, p in again.named_parameters() if p.grad is not None} <= {
        "lora_A",
        "lora_B",
    }


@pytest.mark.parametrize("config", [PromptTuning(length=4, start="random"), PrefixTuning(length=4)])
@pytest.mark.parametrize("make", [masked_pet, causal_pet])
def test_a_model_with_a_trained_prompt_is_scored_behind_it(make, config):
    pet = make()
    plain = pet.scores(EXAMPLES)
    add_prompt(pet.model, config)
    check_scores(pet)
    assert not torch.equal(pet.scores(EXAMPLES), plain)
    pet.loss(EXAMPLES[:2], ["up", "down"], EXAMPLES[:2]).backward()
    trained = {name for name, p in pet.model.named_parameters() if p.grad is not None}
    assert trained == {f"soft_prompt.{name}" for name, _ in pet.model.soft_prompt.named_parameters()}


def test_scores_leave_the_model_as_it_was():
    pet = masked_pet()
    pet.model.train()
    first, second = pet.scores(EXAMPLES), pet.scores(EXAMPLES)
    assert torch.equal(first, second)  # no dropout
    assert not first.requires_grad
    assert pet.model.training
    assert pet.predict(EXAMPLES) == [("up", "down", "none")[i] for i in first.argmax(-1)]


# The loss.


def label_loss(pet, examples, labels):
    losses = [
        label_words_loss(scores, pet.verbalizer.labels.index(label))
        for scores, label in zip(oracle(pet, examples), labels, strict=True)
    ]
    return torch.stack(losses).mean()


class WholeVocabulary(PET):
    """The softmax runs over every word, not over labels."""

    def loss(self, examples, labels, unlabelled=()):
        scores = self._scores([self._encode(x) for x in examples])
        return F.nll_loss(scores, torch.tensor(self.index(examples, labels)))


def check_loss(pet):
    labels = ["up", "down", "none", "up", "none", "none", "down"]
    pet.model.double()
    with Wide():
        found, expected = pet(EXAMPLES, labels)["loss"], label_loss(pet, EXAMPLES, labels)
    assert_same(found, expected, "loss")


@pytest.mark.parametrize("make", [masked_pet, causal_pet])
def test_the_loss_is_the_cross_entropy_over_labels(make):
    check_loss(make())


@pytest.mark.parametrize("make", [masked_pet, causal_pet])
def test_a_softmax_over_the_vocabulary_is_rejected(make):
    with pytest.raises(AssertionError, match="loss: "):
        check_loss(make(WholeVocabulary))


@pytest.mark.parametrize("make", [masked_pet, causal_pet])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_the_losses_are_mixed_by_alpha(make, alpha):
    pet = make(alpha=alpha)
    examples, labels = EXAMPLES[:2], ["up", "down"]
    label = pet.loss(examples, labels)
    torch.manual_seed(1)
    language = pet._language_loss(EXAMPLES)
    torch.manual_seed(1)
    mixed = pet.loss(examples, labels, EXAMPLES)
    assert torch.equal(mixed, (1 - alpha) * label + alpha * language)
    if alpha:
        assert not torch.equal(mixed, label)


def test_the_language_loss_of_a_causal_model_is_its_own_on_the_text_before_the_blank():
    pet = causal_pet()
    ids = torch.tensor([pet.pattern.encode(pet.tokenizer, EXAMPLES[4])[0]])
    pet.model.double()
    with Wide():
        actual, expected = pet._language_loss([EXAMPLES[4]]), pet.model(ids, labels=ids).loss
    assert_same(actual, expected)
    both = pet._language_loss([EXAMPLES[4], EXAMPLES[1]])  # padded, and weighed by tokens
    assert not torch.equal(both, actual)


def test_the_language_loss_of_a_masked_model_spoils_tokens_but_never_the_blank():
    pet = masked_pet(words=ONE_TOKEN)
    mask, special = pet.tokenizer.mask_token_id, set(pet.tokenizer.all_special_ids)
    sides = [pet._encode(EXAMPLES[2])] * 400
    whole = [*sides[0][0], mask, *sides[0][1]]
    blank = len(sides[0][0])
    rows, places, tokens = pet._spoilt(sides)
    free = sum(token not in special for token in whole)
    assert len(places) == len(set(places)) == 400 * round(0.15 * free)
    assert all(j != blank and token == whole[j] for (_, j), token in zip(places, tokens, strict=True))
    assert not special & set(tokens)
    asked = set(places)
    for i, row in enumerate(rows):
        assert all(row[j] == whole[j] for j in range(len(row)) if (i, j) not in asked)
    now = [rows[i][j] for i, j in places]
    masked = sum(token == mask for token in now) / len(now)
    kept = sum(a == b for a, b in zip(now, tokens, strict=True)) / len(now)
    assert 0.77 < masked < 0.83
    assert 0.08 < kept < 0.13
    assert {j for _, j in places} == {j for j, token in enumerate(whole) if token not in special}


# Refusals.


def test_a_causal_model_needs_the_blank_last():
    with pytest.raises(
        ValueError, match=r"must end in \{blank\} for a causal model such as Llama.*was {blank}\.'"
    ):
        causal_pet(template="{text} It was {blank}.")
    with pytest.raises(ValueError, match="a causal model needs a token before the blank"):
        causal_pet(template="{text} {blank}").scores([""])


def test_models_of_other_kinds_are_refused(words):
    tiny = T5Config(vocab_size=40, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    for model in (T5ForConditionalGeneration(tiny), torch.nn.Linear(2, 2)):
        with pytest.raises(TypeError, match=f"got {type(model).__name__}"):
            PET(model, words, Pattern("{text} {blank}"), Verbalizer(ONE_TOKEN))


def test_a_masked_model_needs_a_mask(pieces):
    with pytest.raises(ValueError, match="must have a mask token for a masked model such as BertForMaskedLM"):
        PET(bert(len(pieces)), pieces, Pattern("{text} {blank}"), Verbalizer(ONE_TOKEN))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"alpha": -0.1}, r"alpha must be from 0 to 1; got -0\.1"),
        ({"alpha": 2}, "alpha must be from 0 to 1; got 2"),
        ({"max_length": 0}, "max_length must be"),
        ({"max_length": PLACES + 1}, f"the model's {PLACES} places; got {PLACES + 1}"),
        ({"offset": torch.zeros(2)}, r"offset must have the shape \(3,\); got \(2,\)"),
    ],
)
def test_wrong_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        masked_pet(**option)


def test_wrong_calls_are_refused():
    pet = masked_pet()
    with pytest.raises(TypeError, match="examples must be a sequence"):
        pet.scores("the cat")
    with pytest.raises(ValueError, match="one example or more"):
        pet.scores([])
    with pytest.raises(ValueError, match="one for each of 2 examples; got 1"):
        pet.loss(EXAMPLES[:2], ["up"])
    with pytest.raises(ValueError, match="'left' is not known; choose from up, down, none"):
        pet.loss(EXAMPLES[:1], ["left"])
    with pytest.raises(ValueError, match="more than a token"):
        causal_pet(template="{text} {blank}", alpha=0.5).loss(["sun"], ["up"], ["a"])
