"""What an experiment may ask for: small models, texts and tasks, one way to train, one way to measure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nonet.bench.timing import Effort, Timed, in_turns
from nonet.claim import Untestable
from nonet.compare.measure import Peak, cache_bytes
from nonet.data import (
    EncodedCorpus,
    Examples,
    Task,
    TaskDataset,
    accuracy,
    encode_corpus,
    library_topics,
    load_corpus,
    make_task,
    training_windows,
    validation_windows,
)
from nonet.hf import load_pretrained
from nonet.ledger.language import TopicTexts
from nonet.model import NonetConfig, NonetForCausalLM, NonetForSequenceClassification
from nonet.training import Stopwatch, make_trainer, nats_by_place

T = TypeVar("T")
_SMALL: dict[str, Any] = {"vocab_size": 257, "hidden_size": 64, "num_hidden_layers": 2}


class Lab:
    """What is handed to every experiment of the ledger, and to chapters that measure.

    Args:
        full: the experiment at its full size, some minutes; else the quick one, some seconds.
        say: shown what is being done.

    Attributes:
        seeds: how often to repeat what is drawn at random: 0 and 1, in the full size 2 too.
        threads: how many serve the processor, such as "2 threads".
    """

    def __init__(self, full: bool = False, say: Callable[[str], None] = lambda doing: None) -> None:
        self.full, self.say = full, say
        self.seeds = tuple(range(3 if full else 2))
        number = torch.get_num_threads()
        self.threads = f"{number} thread{'s' * (number > 1)}"

    def scaled(self, quick: T, full: T) -> T:
        """Returns the value for the size that was asked for."""
        return full if self.full else quick

    def language_model(self, seed: int = 0, **fields: Any) -> NonetForCausalLM:
        """Returns a new causal model: two layers of width 64 on bytes, changed by ``fields``."""
        torch.manual_seed(seed)
        return NonetForCausalLM(NonetConfig(**{**_SMALL, **fields}))

    def classifier(self, seed: int = 0, **fields: Any) -> NonetForSequenceClassification:
        """Returns a new classifier of that size which reads both ways; ``num_labels`` is a field."""
        torch.manual_seed(seed)
        return NonetForSequenceClassification(NonetConfig(**{**_SMALL, **fields}))

    def train(
        self,
        model: Any,
        items: Any,
        *,
        batch: int,
        learning_rate: float,
        seed: int = 0,
        times: int = 1,
        look: Callable[[int], object] = lambda steps: None,
        collate: Callable[[list[Any]], dict[str, Any]] | None = None,
    ) -> float:
        """Trains on all items in their order, by AdamW with warm-up and a cosine; returns the steps' seconds.

        Args:
            model: what is trained: its parameters that require a gradient. It returns a ``loss``.
            items: anything with a length and places; ``len(items) // batch`` steps are made.
            batch: items a step.
            learning_rate: the peak.
            seed: of dropout.
            times: how often ``look`` is called, while the watch is stopped and the model in evaluation mode.
            look: takes the number of steps done.
            collate: makes a batch of items; by default tensors are stacked.
        """
        steps = len(items) // batch
        watch = Stopwatch(steps, times, lambda done, _: look(done))
        trainer = make_trainer(
            model,
            items,
            learning_rate=learning_rate,
            batch=batch,
            steps=steps,
            seed=seed,
            device="cpu",
            callbacks=[watch],
            collate=collate,
        )
        trainer.train()
        model.eval()
        return watch.seconds

    def task(self, name: str, length: int, seed: int = 0, **sizes: Any) -> Task:
        """Returns a synthetic task, as :func:`nonet.data.make_task` does."""
        return make_task(name, length, seed, **sizes)

    def sequences(self, task: Task, count: int) -> TaskDataset:
        """Returns the first ``count`` sequences of a task, to train on."""
        return TaskDataset(task, count)

    @torch.no_grad()
    def accuracy(self, model: Any, task: Task, count: int, batch: int = 32) -> float:
        """Returns the share of the scored places of ``count`` new sequences that a model gets right."""
        fresh = task.batch(count, split="test")
        parts = [model(input_ids=ids).logits for ids in fresh["input_ids"].split(batch)]
        return accuracy(torch.cat(parts), fresh["labels"])

    def text(self, tokenizer: Any = "bytes") -> EncodedCorpus:
        """Returns the standard library's source as tokens, split by file."""
        return encode_corpus(load_corpus(None), tokenizer)

    def windows(self, text: EncodedCorpus, length: int, count: int, seed: int = 0) -> Dataset[Any]:
        """Returns ``count`` windows from random places of the text, to train on."""
        return training_windows(text.train, length, seed=seed, count=count, lead=text.lead)

    def nats(self, model: Any, text: EncodedCorpus, length: int, count: int, batch: int = 4) -> Tensor:
        """Returns the mean loss of each place but the first of ``count`` new windows, ``(length - 1,)``."""
        return nats_by_place(model, validation_windows(text.validation, length, count, text.lead), batch)

    def held_out(self, text: EncodedCorpus, length: int, count: int) -> Tensor:
        """Returns the tokens ``(count, length)`` of new windows, the same at every call, to measure with."""
        windows = validation_windows(text.validation, length, count, text.lead)
        return torch.stack([windows[i]["input_ids"] for i in range(len(windows))])

    def topics(self) -> TopicTexts:
        """Returns a made-up language of some hundred words, whose texts have topics that have names."""
        return TopicTexts()

    def docstrings(self, few: int, seed: int = 0) -> Examples:
        """Returns docstrings and the packages they come from: ``few`` to learn from, all others to test."""
        return library_topics(seed=seed, few=few)

    def pretrained(self) -> tuple[Any, Any]:
        """Returns SmolLM2-135M-Instruct in float32 and its tokenizer.

        Raises:
            Untestable: its package is not installed.
        """
        try:
            return load_pretrained("smollm2", torch.float32)
        except ModuleNotFoundError as error:
            raise Untestable(str(error)) from error

    def seconds(self, calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, ...]]:
        """Returns the seconds of every repetition of several calls, taken in turns after a warm-up."""
        effort = Effort(rounds=repeats, seconds=0.0, least=repeats)
        found = in_turns([Timed(call) for call in calls.values()], effort)
        return {name: tuple(times) for name, times in zip(calls, found, strict=True)}

    def peak(self, call: Callable[[], Any]) -> int:
        """Returns the bytes that a call took at most above what was in use.

        Raises:
            Untestable: this system does not tell.
        """
        with Peak(torch.device("cpu")) as peak:
            call()
        if peak.bytes is None:
            raise Untestable("this system does not tell the peak of a process's memory")
        return peak.bytes

    def cache_bytes(self, cache: Any) -> int:
        """Returns the bytes of all that a model's cache keeps."""
        return cache_bytes(cache)
