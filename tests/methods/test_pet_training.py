import math
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch
from common import assert_same
from pet_toys import PLACES, bert, byte_tokenizer, llama, sentences, word_tokenizer
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from nonet.prompt import (
    PET,
    Ensemble,
    Pattern,
    Verbalizer,
    calibrate,
    distil,
    ipet,
    next_training_set,
    train_ensemble,
    train_pet,
)
from nonet.prompt import ensemble as ensemble_module
from nonet.prompt import generations as generations_module
from nonet.prompt.ensemble import accuracy, average
from nonet.testing import assert_within_rounding

VERBALIZER = Verbalizer({"up": ["good", "fine"], "down": ["bad", "poor"]})
OPTIONS = {"max_length": 32}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MASKED = ("{text} . it was {blank} .", "{blank} news : {text}", "{text} ( {blank} )")
CAUSAL = ("{text} It was {blank}", "{text} all in all it was {blank}")


def masked_pet(template=MASKED[0], **options):
    tokenizer = word_tokenizer()
    model = bert(len(tokenizer), num_hidden_layers=1, initializer_range=0.1, **NO_DROPOUT)
    return PET(model, tokenizer, Pattern(template), VERBALIZER, **OPTIONS, **options)


def causal_pet(template=CAUSAL[0], **options):
    tokenizer = byte_tokenizer()
    model = llama(len(tokenizer), num_hidden_layers=1, initializer_range=0.1)
    return PET(model, tokenizer, Pattern(template), VERBALIZER, **OPTIONS, **options)


def exactly(pet):
    """The same in float64."""
    pet.model.double()
    return pet


def makers(make, templates):
    return [lambda template=template: make(template) for template in templates]


def cross_entropy(pet, texts, labels):
    with torch.no_grad():
        return pet.loss(texts, labels).item()


# One PET.


@pytest.mark.parametrize("make", [masked_pet, causal_pet])
def test_a_pet_learns_from_a_few_examples(make):
    pet = make(alpha=0.01)
    texts, labels = sentences(32)
    new_texts, new_labels = sentences(40, seed=1)
    before = cross_entropy(pet, texts, labels)
    mean = train_pet(pet, texts, labels, new_texts, steps=60, learning_rate=5e-3, batch=8)
    assert not pet.model.training
    assert cross_entropy(pet, texts, labels) < 0.3 * before
    assert cross_entropy(pet, texts, labels) < mean < before
    assert accuracy(pet, new_texts, new_labels) > 0.9


def test_training_is_decided_by_its_seed():
    texts, labels = sentences(8)

    def weights(seed):
        pet = masked_pet(alpha=0.5)
        train_pet(pet, texts, labels, texts, steps=3, learning_rate=1e-2, batch=4, seed=seed)
        return torch.cat([p.flatten() for p in pet.parameters()])

    first = weights(0)
    assert torch.equal(first, weights(0))
    assert not torch.equal(first, weights(1))


def test_only_what_requires_a_gradient_is_trained():
    pet = causal_pet()
    pet.model.requires_grad_(False)
    texts, labels = sentences(4)
    with pytest.raises(ValueError, match="nothing to train"):
        train_pet(pet, texts, labels, steps=1)
    pet.model.model.norm.requires_grad_(True)
    before = {name: p.clone() for name, p in pet.named_parameters()}
    train_pet(pet, texts, labels, steps=2, learning_rate=1e-2)
    changed = {name for name, p in pet.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"model.model.norm.weight"}


def test_unlabelled_texts_change_what_is_learned():
    texts, labels = sentences(4)

    def weights(unlabelled, alpha):
        pet = causal_pet(alpha=alpha)
        train_pet(pet, texts, labels, unlabelled, steps=1, learning_rate=1e-2)
        return torch.cat([p.flatten() for p in pet.parameters()])

    assert not torch.equal(weights((), 0.5), weights(texts, 0.5))
    assert torch.equal(weights((), 0.0), weights(texts, 0.0))


def test_fields_given_by_name_are_trained_on():
    pet = masked_pet("{a} ? {blank} , {b} .")
    examples = [{"a": "the sun", "b": "red"}, {"a": "a dog", "b": "rain"}]
    before = cross_entropy(pet, examples, ["up", "down"])
    train_pet(pet, examples, ["up", "down"], steps=10, learning_rate=5e-3)
    assert cross_entropy(pet, examples, ["up", "down"]) < before


@pytest.mark.parametrize(
    ("option", "message"),
    [({"steps": 0}, "steps"), ({"batch": 0}, "batch"), ({"learning_rate": -1.0}, "learning_rate")],
)
def test_wrong_options_of_training_are_refused(option, message):
    texts, labels = sentences(2)
    with pytest.raises(ValueError, match=f"{message} must be above zero"):
        train_pet(masked_pet(), texts, labels, **option)
    with pytest.raises(ValueError, match="one for each of 2 examples"):
        train_pet(masked_pet(), texts, labels[:1])


# Calibration.


@pytest.mark.parametrize("make", [masked_pet, causal_pet])
def test_a_text_without_content_gets_every_label_alike(make):
    pet = exactly(make())
    assert pet.scores(["today"]).softmax(-1).sub(0.5).abs().max() > 1e-3
    calibrated = calibrate(pet, ["today"])
    log_p = calibrated.scores(["today"]).log_softmax(-1)
    assert_same(log_p, torch.full((1, 2), -math.log(2), dtype=torch.float64))
    assert torch.equal(pet.offset, torch.zeros(2))
    assert calibrated.model is pet.model


@pytest.mark.parametrize("make", [masked_pet, causal_pet])
def test_calibration_is_the_papers_quotient(make):
    pet = exactly(make())
    texts, _ = sentences(6)
    p, p_cf = (pet.scores(x).softmax(-1) for x in (texts, ["N/A", pet.tokenizer.mask_token or "[MASK]", ""]))
    q = p / p_cf.mean(0)
    q /= q.sum(-1, keepdim=True)
    assert_same(calibrate(pet).scores(texts).softmax(-1), q)
    assert (p - q).abs().max() > 1e-3


def test_calibration_fills_every_field_and_can_be_repeated():
    pet = exactly(masked_pet("{a} ? {blank} , {b} ."))
    once = calibrate(pet, ["today", "it was"])
    pairs = [{"a": text, "b": text} for text in ("today", "it was")]
    p_cf = pet.scores(pairs).softmax(-1).mean(0)
    assert_same(once.offset, -p_cf.log())
    again = calibrate(calibrate(pet, ["today"]), ["today"])
    assert_same(again.offset, calibrate(pet, ["today"]).offset + math.log(2))
    with pytest.raises(ValueError, match="one example or more"):
        calibrate(pet, [])


# Ensembles.


def test_scores_are_averaged_by_weight():
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 6.0]])
    assert torch.equal(average([a, b]), torch.tensor([[2.0, 4.0]]))
    assert torch.equal(average([a, b], [3, 1]), torch.tensor([[1.5, 3.0]]))
    assert torch.equal(average([a, b], [0, 0]), average([a, b]))
    assert torch.equal(average([a, b], [0, 2]), b)


def test_an_ensemble_averages_scores_and_softens_labels():
    pets = [masked_pet(template) for template in MASKED]
    texts, labels = sentences(9)
    ensemble = Ensemble(pets, [0.5, 0.0, 0.25])
    scores = average([pet.scores(texts) for pet in pets], [0.5, 0.0, 0.25])
    assert torch.equal(ensemble.scores(texts), scores)
    assert torch.equal(ensemble.soft_labels(texts), (scores / 2).softmax(-1))
    assert torch.equal(ensemble.soft_labels(texts, temperature=1.0), scores.softmax(-1))
    predicted = [("up", "down")[i] for i in scores.argmax(-1)]
    assert ensemble.predict(texts) == predicted
    right = sum(a == b for a, b in zip(predicted, labels, strict=True))
    assert accuracy(ensemble, texts, labels) == right / 9


def test_wrong_ensembles_are_refused():
    pet, other = masked_pet(), masked_pet()
    other.verbalizer = Verbalizer({"down": "bad", "up": "good"})
    with pytest.raises(ValueError, match="one PET or more"):
        Ensemble([])
    with pytest.raises(ValueError, match="same labels, up, down; one has down, up"):
        Ensemble([pet, other])
    for weights in ([1.0, 2.0], [-1.0]):
        with pytest.raises(ValueError, match="weights must be zero or above, one for each of 1"):
            Ensemble([pet], weights)
    with pytest.raises(ValueError, match="temperature must be above zero"):
        Ensemble([pet]).soft_labels(["sun"], temperature=0)
    with pytest.raises(ValueError, match="one for each of 1 examples; got 0"):
        accuracy(pet, ["sun"], [])


def test_patterns_are_weighed_by_their_accuracy_before_training():
    texts, labels = sentences(12)
    untrained = tuple(accuracy(masked_pet(template), texts, labels) for template in MASKED[:2])
    options = {"steps": 12, "learning_rate": 5e-3, "batch": 12}
    ensemble = train_ensemble(makers(masked_pet, MASKED[:2]), texts, labels, **options)
    assert ensemble.weights == untrained
    assert accuracy(ensemble, texts, labels) > max(untrained)
    even = train_ensemble(makers(masked_pet, MASKED[:1]), texts, labels, weighted=False, **options)
    assert torch.equal(even.scores(texts), even.pets[0].scores(texts))


# Distillation.


def classifiers():
    words, pieces = word_tokenizer(), byte_tokenizer()
    torch.manual_seed(0)
    small = BertConfig(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=PLACES,
        **NO_DROPOUT,
    )
    yield BertForSequenceClassification(small), words
    causal = LlamaConfig(
        vocab_size=len(pieces),
        hidden_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        pad_token_id=pieces.pad_token_id,
    )
    yield LlamaForSequenceClassification(causal), pieces


@torch.no_grad()
def answers(classifier, tokenizer, text):
    return classifier(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0]


@pytest.mark.parametrize("which", [0, 1], ids=["bert", "llama"])
def test_distillation_brings_a_classifier_near_the_soft_labels(which):
    classifier, tokenizer = list(classifiers())[which]
    texts, labels = sentences(24)
    p = torch.tensor([[0.9, 0.1] if label == "up" else [0.2, 0.8] for label in labels])

    def divergence():
        logits = torch.stack([answers(classifier, tokenizer, text) for text in texts])
        return 4 * F.kl_div((logits / 2).log_softmax(-1), p, reduction="batchmean").item()

    before = divergence()
    mean = distil(classifier, tokenizer, texts, p, steps=50, learning_rate=5e-3, batch=8)
    after = divergence()
    assert after < 0.2 * before
    assert after < mean < before
    assert not classifier.training


def test_one_hot_labels_make_it_plain_fine_tuning():
    [classifier, tokenizer], _ = classifiers()
    classifier.eval()
    texts, labels = ["sun", "the rain"], torch.tensor([0, 1])
    logits = torch.stack([answers(classifier, tokenizer, text) for text in texts])
    loss = distil(
        classifier, tokenizer, texts, F.one_hot(labels, 2).float(), temperature=1.0, steps=1, batch=2
    )
    assert_within_rounding(torch.tensor(loss), lambda: F.cross_entropy(logits.double(), labels))


def test_wrong_soft_labels_are_refused():
    [classifier, tokenizer], _ = classifiers()
    for wrong, message in (
        (torch.ones(2, 2), "each row of sum one"),
        (torch.tensor([[2.0, -1.0], [0.5, 0.5]]), "must be probabilities"),
        (torch.full((2, 4), 0.25), r"soft_labels must have the shape \(n=2, L=2\)"),
        (torch.full((3, 2), 0.5), r"soft_labels must have the shape \(n=2, L=2\)"),
        (torch.tensor([[1, 0], [0, 1]]), "soft_labels must be of a floating dtype"),
    ):
        with pytest.raises(ValueError, match=message):
            distil(classifier, tokenizer, ["sun", "rain"], wrong)


# iPET.


def test_texts_are_drawn_among_those_of_their_label():
    q = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.3, 0.7], [0.45, 0.55]])
    assert sorted(next_training_set(q.log(), [2, 3], seed=0)) == [(0, 0), (1, 0), (2, 1), (3, 1), (4, 1)]
    assert len(next_training_set(q.log(), [1, 2], seed=0)) == 3
    assert Counter(label for _, label in next_training_set(q.log(), [9, 1], seed=0)) == {0: 2, 1: 1}
    assert next_training_set(q.log(), [0, 0], seed=0) == []
    same = [next_training_set(q.log(), [1, 1], seed=3) for _ in range(2)]
    assert same[0] == same[1]
    with pytest.raises(ValueError, match=r"scores must have the shape \(n, L=3\); got \(5, 2\)"):
        next_training_set(q, [1, 1, 1], seed=0)


def test_texts_are_drawn_in_proportion_to_confidence():
    q = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.75, 0.25], [0.1, 0.9]])
    draws = 2000
    count = Counter(next_training_set(q.log(), [1, 0], seed=seed)[0][0] for seed in range(draws))
    assert set(count) == {0, 1, 2}
    for text, confidence in ((0, 0.9), (1, 0.6), (2, 0.75)):
        expected = confidence / 2.25
        error = math.sqrt(expected * (1 - expected) / draws)
        assert abs(count[text] / draws - expected) < 4 * error


def test_zero_shot_draws_from_the_most_likely_whatever_their_own_label():
    q = torch.tensor([[0.95, 0.05], [0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])  # none has label 1
    assert next_training_set(q.log(), [0, 2], seed=0) == []
    assert sorted(next_training_set(q.log(), [0, 2], seed=0, most_likely=2)) == [(2, 1), (3, 1)]
    drawn = {next_training_set(q.log(), [0, 1], seed=s, most_likely=3)[0] for s in range(60)}
    assert drawn == {(1, 1), (2, 1), (3, 1)}


@dataclass
class Oracle:
    """Stands for a PET: knows the scores of texts, and what it was trained on."""

    always: str | None = None
    verbalizer: Verbalizer = VERBALIZER
    trained_on: list = field(default_factory=list)

    def scores(self, texts, batch=16):
        wanted = [self.always or text.split()[0] for text in texts]
        return torch.tensor([[3.0, 0.0] if label == "up" else [0.0, 3.0] for label in wanted])

    def predict(self, texts, batch=16):
        return ["up" if up > down else "down" for up, down in self.scores(texts)]


@pytest.fixture
def trainings(monkeypatch):
    """The sets that PETs were trained on, in order, without training any."""
    done = []

    def record(pet, examples, labels, unlabelled, **options):
        pet.trained_on = list(zip(examples, labels, strict=True))
        done.append(pet)

    for module in (ensemble_module, generations_module):
        monkeypatch.setattr(module, "train_pet", record)
    return done


POOL = [f"{label} {i}" for i in range(1500) for label in ("up", "down")]
GIVEN = [*(f"up given {i}" for i in range(6)), *(f"down given {i}" for i in range(4))]
GIVEN_LABELS = ["up"] * 6 + ["down"] * 4


def label_counts(pet):
    return tuple(Counter(label for _, label in pet.trained_on)[name] for name in ("up", "down"))


def test_generations_grow_fivefold_and_keep_the_ratio_of_labels(trainings):
    last = ipet([Oracle] * 3, GIVEN, GIVEN_LABELS, POOL)
    generations = [trainings[i : i + 3] for i in range(0, len(trainings), 3)]
    sizes = [(6, 4), (30, 20), (150, 100), (750, 500)]
    assert [[label_counts(pet) for pet in pets] for pets in generations] == [[size] * 3 for size in sizes]
    assert list(last.pets) == generations[-1]
    assert last.weights == (1.0,) * 3
    for pet in trainings:
        assert pet.trained_on[:10] == list(zip(GIVEN, GIVEN_LABELS, strict=True))
        assert len({text for text, _ in pet.trained_on}) == len(pet.trained_on)
        assert all(text.startswith(label) for text, label in pet.trained_on)


@pytest.mark.parametrize(
    ("options", "size"),
    [({"generations": 1}, 50), ({"generations": 2, "growth": 3}, 90), ({"growth": 10}, 1000)],
)
def test_generations_and_growth_are_options(trainings, options, size):
    last = ipet([Oracle] * 2, GIVEN, GIVEN_LABELS, POOL, **options)
    assert [len(pet.trained_on) for pet in last.pets] == [size] * 2


def test_as_many_examples_as_are_enough_still_make_one_generation(trainings):
    given = [f"up {i}" for i in range(1000)]
    ipet([Oracle] * 2, given, ["up"] * 1000, POOL)
    assert len(trainings) == 4


def test_without_examples_ten_texts_are_the_first_set(trainings):
    last = ipet([Oracle] * 2, [], [], POOL)
    assert [label_counts(pet) for pet in trainings[::2]] == [(5, 5), (25, 25), (125, 125), (625, 625)]
    assert last.weights is None


def test_models_label_for_others_and_never_for_themselves(trainings):
    built = [lambda: Oracle("up"), lambda: Oracle("down")]
    ipet(built, GIVEN, GIVEN_LABELS, POOL, generations=1, weighted=False)
    new = [{label for _, label in pet.trained_on[10:]} for pet in trainings[2:]]
    assert new == [{"down"}, {"up"}]


@pytest.mark.parametrize(("share", "asked"), [(0.25, 2), (0.01, 1), (1.0, 8)])
def test_a_share_of_the_other_models_is_asked(trainings, monkeypatch, share, asked):
    seen = []
    monkeypatch.setattr(
        generations_module,
        "average",
        lambda scores, weights: seen.append((len(scores), len(weights))) or scores[0],
    )
    ipet([Oracle] * 9, GIVEN, GIVEN_LABELS, POOL, generations=1, share=share)
    assert seen == [(asked, asked)] * 9


def test_generations_of_real_models_learn():
    texts, labels = sentences(32)
    pool, truth = sentences(60, seed=1)
    made = makers(lambda template: masked_pet(template, alpha=0.0), MASKED[:2])
    last = ipet(made, texts, labels, pool, generations=1, steps=40, learning_rate=5e-3, batch=8)
    assert accuracy(last, pool, truth) > 0.8
    assert last.weights == tuple(accuracy(make(), texts, labels) for make in made)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"makers": [Oracle]}, "makers must be two or more"),
        ({"unlabelled": []}, "unlabelled must hold"),
        ({"share": 0}, "share must be"),
        ({"growth": 1}, "growth must be 2 or more"),
        ({"generations": 0}, "generations 1 or more"),
    ],
)
def test_wrong_generations_are_refused(option, message):
    call = {"makers": [Oracle] * 2, "examples": GIVEN, "labels": GIVEN_LABELS, "unlabelled": POOL, **option}
    with pytest.raises(ValueError, match=message):
        ipet(**call)
