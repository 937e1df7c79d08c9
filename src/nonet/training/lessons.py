"""What a pretrained model is taught: a text, completions, conversations or labels."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from nonet.data import Corpus, encode_corpus, load_corpus, training_windows, validation_windows
from nonet.data.corpus import corpus_of
from nonet.data.examples import Example, Examples, read_examples
from nonet.data.split import SPLITS
from nonet.data.tables import is_table
from nonet.data.tokenizer import end_id
from nonet.data.topics import library_topics
from nonet.hf.labels import Question
from nonet.training.finetune import Tuning
from nonet.training.fingerprint import of_rows
from nonet.training.pairs import Item, Pairs, conversation, in_passes, padded, pair
from nonet.training.quality import nats_by_place

_SCORED = 32  # windows of text whose loss is measured


@dataclass(frozen=True)
class Lesson:
    """What is trained, on what, and how good it is found to be.

    Attributes:
        module: what the Trainer trains: the model, or PET around it.
        items: of the whole training, in order; anything with a length and places.
        measure: returns figures on validation examples; ``final`` on those kept for the end.
        facts: of the data, for the card.
        rests_on: a hash of the data, by what they are called.
        collate: makes a batch of items.
        question: how the model is asked for a label, where it is taught labels.
    """

    module: nn.Module
    items: Any
    measure: Callable[[bool], dict[str, float]]
    facts: Mapping[str, Any]
    rests_on: Mapping[str, str] = field(repr=False)
    collate: Callable[[list[Any]], dict[str, Any]] | None = None
    question: Question | None = None


def lesson(model: Any, tokenizer: Any, tuning: Tuning) -> Lesson:
    """Returns what is to be done.

    Raises:
        ValueError: the data cannot serve the method, or a line of it is wrong.
        FileNotFoundError: there is no such data.
    """
    if tuning.source is None and tuning.method == "pet":
        return _labels(model, tokenizer, tuning, library_topics(few=tuning.few))
    if tuning.source is None or not is_table(tuning.source):
        if tuning.few is not None:
            raise ValueError(f"few={tuning.few} chooses among examples; a text has none")
        return _text(model, tokenizer, tuning, load_corpus(tuning.source))
    examples = read_examples(tuning.source, few=tuning.few)
    if examples.columns == ("text",):
        return _text(model, tokenizer, tuning, corpus_of(examples))
    taught = _labels if examples.labels else _answers
    return taught(model, tokenizer, tuning, examples)


def _text(model: Any, tokenizer: Any, tuning: Tuning, corpus: Corpus) -> Lesson:
    _refuse(tuning, "a text", "pet", "chat")
    text = encode_corpus(corpus, tokenizer)
    items = training_windows(text.train, tuning.window, tuning.seed, tuning.steps * tuning.batch, text.lead)
    scored = {
        False: validation_windows(text.validation, tuning.window, _SCORED, text.lead),
        True: validation_windows(text.test, tuning.window, 4 * _SCORED, text.lead),
    }

    def measure(final: bool) -> dict[str, float]:
        nats = nats_by_place(model, scored[final], tuning.batch).mean().item()
        return {"bits_per_byte": text.bits_per_byte(nats, "test" if final else "validation")}

    facts = {"text": corpus.name, "fingerprint": corpus.fingerprint}
    return Lesson(model, items, measure, facts, {"the text": corpus.fingerprint})


def _answers(model: Any, tokenizer: Any, tuning: Tuning, examples: Examples) -> Lesson:
    _refuse(tuning, "a file of answers", "pet")
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else end_id(tokenizer)
    item = functools.partial(_item, tokenizer=tokenizer, tuning=tuning)
    held = {
        False: Pairs([item(e) for e in examples.validation[:_SCORED]]),
        True: Pairs([item(e) for e in examples.test]),
    }
    items = Pairs([item(e) for e in examples.train], tuning.seed, tuning.steps * tuning.batch)

    def measure(final: bool) -> dict[str, float]:
        return {"nats_per_token": _nats(model, held[final], tuning.batch, pad)}

    return Lesson(model, items, measure, _facts(examples), _hash(examples), padded(pad))


def _item(example: Example, tokenizer: Any, tuning: Tuning) -> Item:
    if example.messages is not None:
        return conversation(example.messages, tokenizer, tuning.window)
    completion = example.completion or ""
    if tuning.chat:
        messages = [("user", example.text), ("assistant", completion)]
        return conversation(messages, tokenizer, tuning.window)
    return pair(example.text, completion, tokenizer, tuning.window)


def _labels(model: Any, tokenizer: Any, tuning: Tuning, examples: Examples) -> Lesson:
    _refuse(tuning, "a file of labels", "full", "chat")
    question = Question(tuning.pattern, {label: [label] for label in examples.labels}, tuning.window)
    pet = question.ask(model, tokenizer)

    def accuracy(final: bool) -> dict[str, float]:
        part = examples.test if final else examples.validation[:_SCORED]
        found = pet.predict([e.text for e in part])
        return {"accuracy": sum(a == e.label for a, e in zip(found, part, strict=True)) / len(part)}

    count = tuning.steps * tuning.batch
    items = [examples.train[i] for i in in_passes(len(examples.train), count, tuning.seed)]
    facts = {
        **_facts(examples),
        "labels": ", ".join(examples.labels),
        "pattern": json.dumps(tuning.pattern, allow_nan=False),
    }
    return Lesson(pet, items, accuracy, facts, _hash(examples), _together, question)


def _together(batch: list[Example]) -> dict[str, Any]:
    return {"examples": [e.text for e in batch], "labels": [e.label for e in batch]}


def _facts(examples: Examples) -> dict[str, str]:
    return {"examples": f"{len(examples.train)} of {examples.name}"}


def _hash(examples: Examples) -> dict[str, str]:
    return {"the examples": of_rows(e for split in SPLITS for e in getattr(examples, split))}


def _refuse(tuning: Tuning, data: str, *cannot: str) -> None:
    """Raises ValueError for a method or an option that the data cannot serve."""
    if tuning.method == "pet" and "pet" in cannot:
        raise ValueError(f"method='pet' needs labelled examples, with text and label; got {data}")
    if tuning.method == "full" and "full" in cannot:
        raise ValueError(
            "method='full' learns text, or prompts with completions; for labels choose pet, or an adapter"
        )
    if tuning.chat and "chat" in cannot:
        raise ValueError(f"chat=True needs prompts with completions, or messages; got {data}")


@torch.no_grad()
def _nats(model: Any, pairs: Pairs, batch: int, pad: int) -> float:
    """Returns the mean cross-entropy of the tokens that are learned."""
    total = count = 0.0
    for first in range(0, len(pairs), batch):
        made = padded(pad)([pairs[i] for i in range(first, min(len(pairs), first + batch))])
        made = {key: value.to(model.device) for key, value in made.items()}
        tokens = int((made["labels"][:, 1:] >= 0).sum())
        total += model(**made, use_cache=False).loss.item() * tokens
        count += tokens
    return total / count
