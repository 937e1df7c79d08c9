"""What the vectors of a prompt are before training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nonet.prompt.config import PrefixTuning, PromptTuning

FREQUENT = 5000
_RANKED = ("BPE", "Unigram")  # tokenizers whose identifiers rise as frequency falls


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Makes all that is drawn inside follow from ``seed``; the global generators stay as they were."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def first_vectors(config: PromptTuning, embedding: nn.Embedding, tokenizer: Any | None) -> Tensor:
    """Returns the ``(P, E)`` vectors that prompt tuning starts from; to be called inside :func:`seeded`.

    Args:
        config: says which start, and its text.
        embedding: the model's, which is called and not read: some scale what they look up.
        tokenizer: needed by the starts ``"text"`` and ``"labels"``; tells ``"vocabulary"`` frequent ones.

    Raises:
        ValueError: the start lacks its text or the tokenizer, a text has no tokens, or there are more
            labels than vectors.
    """
    length, (rows, width) = config.length, embedding.weight.shape
    dtype = torch.promote_types(embedding.weight.dtype, torch.float32)
    if config.start == "random":
        return torch.rand(length, width, dtype=dtype) - 0.5

    def vectors(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return embedding(ids.to(embedding.weight.device)).to("cpu", dtype)

    if config.start != "labels":
        return vectors(first_tokens(config, rows, tokenizer))
    text = _text(config, tokenizer)
    if len(text) > length:
        raise ValueError(f"text holds {len(text)} labels; length={length} leaves no vector for some")
    labels = [vectors(torch.tensor(_tokens(word, tokenizer))).mean(0) for word in text]
    rest = vectors(_sampled(length - len(labels), rows, tokenizer))
    return torch.cat([torch.stack(labels), rest])


def first_tokens(config: PromptTuning | PrefixTuning, rows: int, tokenizer: Any | None) -> Tensor:
    """Returns the ``(P,)`` tokens that the starts ``"vocabulary"`` and ``"text"`` are made of.

    Args:
        config: says which start, and its text.
        rows: V, tokens that the model knows.
        tokenizer: needed by ``"text"``; tells ``"vocabulary"`` frequent ones.

    Raises:
        ValueError: the start lacks its text or the tokenizer, or the text has no tokens.
    """
    if config.start == "vocabulary":
        return _sampled(config.length, rows, tokenizer)
    ids = _tokens(_text(config, tokenizer), tokenizer)
    return torch.tensor(ids).repeat(-(-config.length // len(ids)))[: config.length]


def _text(config: PromptTuning | PrefixTuning, tokenizer: Any | None) -> Any:
    """Returns what a start reads; raises ValueError where it or the tokenizer is missing."""
    if config.text is None or tokenizer is None:
        missing = "text" if config.text is None else "tokenizer"
        raise ValueError(f"start={config.start!r} needs {missing}; got None")
    return config.text


def _sampled(count: int, rows: int, tokenizer: Any | None) -> Tensor:
    """Returns tokens drawn without repetition, unless there are too few."""
    allowed = torch.arange(rows)
    if tokenizer is not None:
        allowed = allowed[: len(tokenizer)]
        allowed = allowed[~torch.isin(allowed, torch.tensor(tokenizer.all_special_ids, dtype=torch.long))]
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is not None and type(backend.model).__name__ in _RANKED:
            allowed = allowed[:FREQUENT]
    if count > len(allowed):
        return allowed[torch.randint(len(allowed), (count,))]
    return allowed[torch.randperm(len(allowed))[:count]]


def _tokens(text: str, tokenizer: Any) -> list[int]:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if not ids:
        raise ValueError(f"text={text!r} has no tokens")
    return list(ids)
