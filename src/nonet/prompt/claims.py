"""What the papers of prompt learning claim, as experiments."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from nonet.claim import Claim, Curve, Figure, Finding, Plot, Untestable, Verdict
from nonet.prompt.config import PromptTuning
from nonet.prompt.ensemble import Ensemble, accuracy
from nonet.prompt.fitting import fit, train_pet
from nonet.prompt.pattern import Pattern
from nonet.prompt.pet import PET
from nonet.prompt.soft import add_prompt
from nonet.prompt.verbalizer import Verbalizer

if TYPE_CHECKING:
    from nonet.ledger import Lab

_PATTERNS = ("{text} it is about {blank}", "{text} they speak of {blank}", "{text} a story of {blank}")
_WORDS = ("house", "time", "year", "woman")  # that have nothing to do with the topics they shall stand for
_TEST = 999  # seed of the texts that are judged by
_STEPS, _BATCH, _AT_ONCE = 40, 16, 50
_PROMPT_RATES = (0.03, 0.1)
_DOCSTRING = "{text}\nThis describes a part of Python's package {blank}"
_ASKED = 200  # docstrings that are judged by
_Labelled: TypeAlias = tuple[list[str], list[str]]  # texts, and the topic of each


class Head(nn.Module):
    """A new linear layer on the mean of a language model's hidden states; all of it is trained.

    Args:
        model: a causal language model; its body is used as it is.
        labels: how many.
        seed: of the layer's first values.
    """

    def __init__(self, model: Any, labels: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body, self.score = model.model, nn.Linear(model.config.hidden_size, labels, bias=False)
        nn.init.normal_(self.score.weight, std=0.02)

    def forward(self, ids: Tensor, real: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Returns the logits, and their cross-entropy as ``loss``; ``real`` is zero on padding (B, T)."""
        states = self.body(input_ids=ids, attention_mask=real).last_hidden_state * real[..., None]
        logits = self.score(states.sum(1) / real.sum(1, keepdim=True))
        return {"loss": F.cross_entropy(logits, target), "logits": logits}


def train_head(
    model: Any,
    tokenizer: Any,
    names: Sequence[str],
    examples: _Labelled,
    test: _Labelled,
    *,
    steps: int,
    learning_rate: float,
    batch: int = _BATCH,
    seed: int,
) -> float:
    """Trains a new head on a model, and the model with it; returns the share of test texts it gets right."""
    head = Head(model, len(names), seed)

    def collate(items: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
        rows = [torch.tensor(tokenizer(text)["input_ids"]) for text, _ in items]
        return {
            "ids": pad_sequence(rows, batch_first=True),
            "real": pad_sequence([torch.ones_like(row) for row in rows], batch_first=True),
            "target": torch.tensor([names.index(label) for _, label in items]),
        }

    pairs = list(zip(*examples, strict=True))
    fit(head, pairs, collate, steps=steps, learning_rate=learning_rate, batch=batch, seed=seed)
    # Those of like length go together, so that little of a batch is padding.
    asked, right = sorted(zip(*test, strict=True), key=lambda pair: len(pair[0])), 0
    for start in range(0, len(asked), _AT_ONCE):
        given = collate(asked[start : start + _AT_ONCE])
        with torch.no_grad():
            right += int((head(**given)["logits"].argmax(-1) == given["target"]).sum())
    return right / len(asked)


def _model(lab: Lab, width: int = 64, *, seed: int = 0) -> Any:
    """Returns a language model that has read texts with topics, none of them labelled."""
    lab.say(f"a language model of width {width} reads")
    texts = lab.topics()
    model = lab.language_model(seed, vocab_size=texts.vocab_size, hidden_size=width)
    lab.train(model, texts.reading(32 * lab.scaled(150, 400), seed), batch=32, learning_rate=8e-3)
    return model


def _pet(model: Any, tokenizer: Any, names: Sequence[str], pattern: str) -> PET:
    return PET(copy.deepcopy(model), tokenizer, Pattern(pattern), Verbalizer({name: name for name in names}))


def _few(lab: Lab) -> Finding:
    texts = lab.topics()
    tokenizer, names = texts.tokenizer(), texts.labels
    test = texts.labelled(lab.scaled(800, 2000), _TEST)
    counts = lab.scaled((10, 50), (10, 50, 250, 1000))
    zero: list[float] = []
    words: dict[int, list[float]] = {count: [] for count in counts}
    heads: dict[int, list[float]] = {count: [] for count in counts}
    for seed in lab.seeds:
        model = _model(lab, seed=seed)
        zero.append(accuracy(_pet(model, tokenizer, names, _PATTERNS[0]), *test))
        for count in counts:
            lab.say(f"{count} examples, seed {seed}")
            examples, steps = texts.labelled(count, seed), max(_STEPS, 4 * count // _BATCH)
            pet = _pet(model, tokenizer, names, _PATTERNS[0])
            train_pet(pet, *examples, steps=steps, learning_rate=3e-4, batch=_BATCH, seed=seed)
            words[count].append(accuracy(pet, *test))
            given = (model, tokenizer, names, examples, test)
            heads[count].append(_best_head(*given, (3e-4, 1e-3), steps=steps, seed=seed))
    return _against_head(
        f"Right of {len(test[0]):,} new texts of four topics, over {len(lab.seeds)} models",
        zero,
        words,
        heads,
    )


def _pretrained(lab: Lab) -> Finding:
    if not lab.full:
        raise Untestable("A pretrained model is trained eighteen times, which is for the full size: --full.")
    model, tokenizer = lab.pretrained()
    zero: list[float] = []
    words: dict[int, list[float]] = {10: [], 50: []}
    heads: dict[int, list[float]] = {10: [], 50: []}
    for seed in lab.seeds:
        for count, found in words.items():
            lab.say(f"{count} examples, seed {seed}")
            drawn = lab.docstrings(count, seed)
            examples = [e.text for e in drawn.train], [str(e.label) for e in drawn.train]
            test = [e.text for e in drawn.test[:_ASKED]], [str(e.label) for e in drawn.test[:_ASKED]]
            pet = _pet(model, tokenizer, drawn.labels, _DOCSTRING)
            if len(zero) <= seed:
                zero.append(accuracy(pet, *test))
            train_pet(pet, *examples, steps=20, learning_rate=5e-5, batch=8, seed=seed)
            found.append(accuracy(pet, *test))
            given = (model, tokenizer, drawn.labels, examples, test)
            heads[count].append(_best_head(*given, (5e-5, 2e-4), steps=20, batch=8, seed=seed))
    return _against_head(
        f"Right of {_ASKED} docstrings of five packages, over {len(lab.seeds)} draws of examples",
        zero,
        words,
        heads,
    )


def _best_head(
    model: Any,
    tokenizer: Any,
    names: Sequence[str],
    examples: _Labelled,
    test: _Labelled,
    rates: Sequence[float],
    **options: int,
) -> float:
    """Returns the best share over learning rates, by the test: what PET is held against is not to be weak."""
    return max(
        train_head(copy.deepcopy(model), tokenizer, names, examples, test, learning_rate=rate, **options)
        for rate in rates
    )


def _against_head(
    of: str, zero: list[float], words: dict[int, list[float]], heads: dict[int, list[float]]
) -> Finding:
    """Returns what PET's shares of right answers, by the number of examples, say beside a new head's."""
    ahead = {n: [a - b for a, b in zip(words[n], heads[n], strict=True)] for n in words}
    verdict: Verdict = "does not hold here"
    if min(ahead[10]) >= 0.1 and min(ahead[50]) > 0:
        verdict = "holds"
    elif mean(ahead[10]) > 0:
        verdict = "holds in part"
    told = "; ".join(f"{n:,} examples: {_percent(words[n])} against {_percent(heads[n])}" for n in words)
    return Finding(
        verdict,
        f"{of}, PET against a new head: {told}. Asked without an example PET has {_percent(zero)}.",
        (
            *(Figure(f"PET, {n} examples", tuple(found)) for n, found in words.items()),
            *(Figure(f"head, {n} examples", tuple(found)) for n, found in heads.items()),
            Figure("PET, no example", tuple(zero)),
        ),
        Plot(
            "labelled examples",
            "share of new texts that is right",
            (_curve("PET", words), _curve("new head", heads)),
            log_x=True,
        ),
    )


def _ensemble(lab: Lab) -> Finding:
    texts = lab.topics()
    tokenizer = texts.tokenizer()
    test = texts.labelled(lab.scaled(1000, 4000), _TEST)
    single: dict[str, list[float]] = {pattern: [] for pattern in _PATTERNS}
    together = []
    for seed in lab.seeds:
        model, examples = _model(lab, seed=seed), texts.labelled(10, seed)
        pets, weights = [], []
        for pattern, found in single.items():
            lab.say(f"pattern {pattern!r}, seed {seed}")
            pet = _pet(model, tokenizer, texts.labels, pattern)
            weights.append(accuracy(pet, *examples))
            train_pet(pet, *examples, steps=_STEPS, learning_rate=3e-4, batch=_BATCH, seed=seed)
            pets.append(pet)
            found.append(accuracy(pet, *test))
        together.append(accuracy(Ensemble(pets, weights), *test))
    means = [mean(found) for found in single.values()]
    each_mean = [mean(found) for found in zip(*single.values(), strict=True)]
    no_worse = all(a >= b for a, b in zip(together, each_mean, strict=True))
    verdict: Verdict = "does not hold here"
    if no_worse and mean(together) > max(means):
        verdict = "holds"
    elif mean(together) >= mean(means):
        verdict = "holds in part"
    return Finding(
        verdict,
        f"With 10 examples, over {len(lab.seeds)} models and draws of them: three patterns together "
        f"{_percent(together, 1)}, the best of them {100 * max(means):.1f} % and the worst "
        f"{100 * min(means):.1f} %, alone. On each draw the three together are "
        f"{'at least as' if no_worse else 'not always as'} good as one on average.",
        (
            Figure("three patterns together", tuple(together)),
            *(Figure(f"alone: {pattern}", tuple(found)) for pattern, found in single.items()),
        ),
    )


def tune(
    model: Any,
    tokenizer: Any,
    names: Sequence[str],
    learning: _Labelled,
    test: _Labelled,
    prompt: int,
    steps: int,
    learning_rate: float,
    seed: int,
) -> float:
    """Teaches a copy of a model that topics are called by unlike words; returns its share of right answers.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        names: of the topics.
        learning: texts and their topics.
        test: the same, to judge by.
        prompt: vectors of the prompt that is trained; 0 to train the whole model in its place.
        steps: updates.
        learning_rate: the first, and highest.
        seed: of the prompt's start and of the order.
    """
    model = copy.deepcopy(model)
    if prompt:
        add_prompt(model, PromptTuning(prompt, seed=seed), tokenizer)
    words = Verbalizer(dict(zip(names, _WORDS, strict=True)))
    pet = PET(model, tokenizer, Pattern("{text} {blank}"), words)
    train_pet(pet, *learning, steps=steps, learning_rate=learning_rate, batch=_BATCH, seed=seed)
    return accuracy(pet, *test)


def _length(lab: Lab) -> Finding:
    lengths, steps = lab.scaled((1, 20, 40), (1, 5, 20, 100)), lab.scaled(200, 500)
    texts = lab.topics()
    tokenizer = texts.tokenizer()
    learning, test = texts.labelled(_BATCH * steps, 0), texts.labelled(400, _TEST)
    right: dict[int, list[float]] = {length: [] for length in lengths}
    for seed in lab.seeds:
        model = _model(lab, seed=seed)
        for length in lengths:
            lab.say(f"{length} vectors, seed {seed}")
            given = (model, tokenizer, texts.labels, learning, test)
            right[length].append(tune(*given, length, steps, _PROMPT_RATES[0], seed))
    longer = [max(found) for found in zip(*(right[n] for n in lengths if n > 20), strict=True)]
    first = [b - a for a, b in zip(right[1], right[20], strict=True)]
    then = [b - a for a, b in zip(right[20], longer, strict=True)]
    # On every model, what is longer than 20 may gain a tenth of what 20 vectors gain over one.
    verdict: Verdict = "does not hold here"
    if all(b <= 0.1 * a for a, b in zip(first, then, strict=True)) and min(first) >= 0.1:
        verdict = "holds"
    elif mean(first) > max(mean(then), 0):
        verdict = "holds in part"
    told = ", ".join(f"{length}: {_percent(found)}" for length, found in right.items())
    return Finding(
        verdict,
        f"Right answers by the length of the prompt after {steps} steps, over {len(lab.seeds)} models: "
        f"{told}.",
        tuple(Figure(f"right, {length} vectors", tuple(found)) for length, found in right.items()),
        Plot("vectors of the prompt", "share that is right", (_curve("prompt tuning", right),), log_x=True),
    )


def _small(lab: Lab) -> Finding:
    widths, steps = lab.scaled((32, 64), (32, 64, 128)), lab.scaled(100, 200)
    texts = lab.topics()
    tokenizer = texts.tokenizer()
    learning, test = texts.labelled(_BATCH * steps, 0), texts.labelled(400, _TEST)
    prompts: dict[int, list[float]] = {width: [] for width in widths}
    whole: dict[int, list[float]] = {width: [] for width in widths}
    for width in widths:
        for seed in lab.seeds:
            model = _model(lab, width, seed=seed)
            lab.say(f"width {width}, seed {seed}")
            given = (model, tokenizer, texts.labels, learning, test)
            prompts[width].append(max(tune(*given, 20, steps, rate, seed) for rate in _PROMPT_RATES))
            whole[width].append(tune(*given, 0, steps, 1e-3, seed))
    gaps = [[a - b for a, b in zip(whole[width], prompts[width], strict=True)] for width in widths]
    # Behind by five points at the least width, and by less at the largest, whatever the seed.
    trails = min(gaps[0]) >= 0.05
    verdict: Verdict = "does not hold here"
    if trails and max(gaps[-1]) < min(gaps[0]):
        verdict = "holds"
    elif trails:
        verdict = "holds in part"
    told = "; ".join(
        f"width {width}: {_percent(prompts[width])} against {_percent(whole[width])}" for width in widths
    )
    return Finding(
        verdict,
        f"Right answers, 20 trained vectors at the better of two learning rates against the whole model "
        f"trained, after {steps} steps, over "
        f"{len(lab.seeds)} models of each width: {told}. Whether the gap closes at billions of weights "
        "is not tested.",
        (
            *(Figure(f"prompt of 20, width {width}", tuple(prompts[width])) for width in widths),
            *(Figure(f"whole model, width {width}", tuple(whole[width])) for width in widths),
        ),
    )


def _percent(shares: Sequence[float], digits: int = 0) -> str:
    """Returns the mean in per cent, and between which values it lies."""
    low, high = 100 * min(shares), 100 * max(shares)
    return f"{100 * mean(shares):.{digits}f} % ({low:.{digits}f} to {high:.{digits}f})"


def _curve(name: str, found: dict[int, list[float]]) -> Curve:
    values = list(found.values())
    return Curve(
        name,
        tuple(map(float, found)),
        tuple(map(mean, values)),
        tuple(map(min, values)),
        tuple(map(max, values)),
    )


CLAIMS = (
    Claim(
        "few-examples",
        "With few labelled examples PET is far ahead of a new head: on AG's News 87.5 against 25.0 % right "
        "with 10 examples, 86.3 against 82.1 % with 50.",
        "2001.07676, table 1",
        "A causal model of two layers first reads unlabelled texts of a made-up language, in which topics "
        "have names and half of the texts end in a phrase that patterns use; then it is trained whole on 10 "
        "and 50 labelled texts (full size: 250 and 1,000 too), by a pattern or by a new head.",
        _few,
    ),
    Claim(
        "few-docstrings",
        "A pretrained model that is asked in words is far ahead of one with a new head: RoBERTa has 87.5 "
        "against 25.0 % right on AG's News with 10 examples.",
        "2001.07676, table 1",
        "SmolLM2-135M-Instruct, trained whole on 10 and 50 docstrings to tell from which of five packages "
        "they come, whose names are blotted out; RoBERTa is over twice as large and masked.",
        _pretrained,
    ),
    Claim(
        "ensemble",
        "Several patterns together are better than the best alone: 87.0 against 85.0 % right on AG's News "
        "with 10 examples.",
        "2001.07676, table 4",
        "Three patterns in the same made-up language, whose phrases the model has read, weighed by accuracy "
        "before training; not distilled.",
        _ensemble,
    ),
    Claim(
        "length-twenty",
        "More than 20 trained vectors in front of the text gain little.",
        "2104.08691, section 3.2",
        "The frozen small model learns to call topics by words that are unlike them; the paper's models "
        "are T5 of 77 million weights and more, on SuperGLUE.",
        _length,
    ),
    Claim(
        "small-trail",
        "On small models prompt tuning stays behind training the whole model, and the gap shrinks with size.",
        "2104.08691, section 3.1 and figure 1",
        "The same task, models of several widths: a prompt of 20 vectors against all weights, as many steps; "
        "the prompt at the better of two rates, by the test.",
        _small,
    ),
)
