"""Continuing a prompt with a causal model of Transformers: alone, with an adapter, or in a tandem."""

from __future__ import annotations

import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, TextStreamer, set_seed
from transformers.utils import logging as transformers_logging

from nonet.data.chat import chat_ids
from nonet.data.tokenizer import prompt_ids
from nonet.files import to_json
from nonet.hf.adapters import load_adapter
from nonet.hf.positions import room
from nonet.hf.pretrained import load_pretrained
from nonet.shapes import check_positive

# A model's own settings for generation may ask for more than its text.
_PLAIN = {"return_dict_in_generate": False, "output_attentions": False, "output_hidden_states": False}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What is to be written.

    Attributes:
        prompt: the text to continue, or the message to answer; an empty one begins a text.
        chat: ask with the model's chat template, and write the answer alone.
        tokens: how many to write at most.
        temperature: 0 takes the likeliest token each time.
        top_p: sample from the likeliest tokens that together have this probability.
        seed: of sampling.
        as_json: one document with the text and figures in place of the text.

    Raises:
        ValueError: a number is out of range, or there is no message to answer.
    """

    prompt: str
    chat: bool
    tokens: int
    temperature: float
    top_p: float
    seed: int
    as_json: bool

    def __post_init__(self) -> None:
        check_positive(tokens=self.tokens, temperature=self.temperature or None)
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1; got {self.top_p}")
        if self.chat and not self.prompt.strip():
            raise ValueError("chat=True answers a message; give one as the prompt")

    @property
    def sampling(self) -> dict[str, Any]:
        """The arguments of ``generate`` that choose tokens."""
        return {"temperature": self.temperature, "top_p": self.top_p} if self.temperature else {}

    @property
    def shown(self) -> str:
        """What is printed before the text that is written."""
        return "" if self.chat else self.prompt

    def ids(self, tokenizer: Any) -> Tensor:
        """Returns the tokens ``(1, T)`` to continue: those that training shows before a text, too."""
        if self.chat:
            return torch.tensor([chat_ids(tokenizer, [("user", self.prompt)])])
        return torch.tensor([prompt_ids(tokenizer, self.prompt)])

    def new(self, model: Any, length: int, ahead: int = 0) -> int:
        """Returns how many tokens to write after ``length``, which the positions of a model may limit.

        Args:
            model: that reads them.
            length: tokens of the prompt.
            ahead: tokens that are read and may be thrown away again.

        Raises:
            ValueError: the model has too few positions for the prompt.
        """
        most = room(model)
        left = self.tokens if most is None else most + 1 - length - ahead  # the last is not read
        if left < 1:
            raise ValueError(
                f"the prompt has {length} tokens and {model.config.name_or_path} positions for {most}; "
                "shorten the prompt"
            )
        if left < self.tokens:
            _log.warning(
                "writing stops after %d tokens instead of %d: the positions of %s end after %d",
                *(left, self.tokens, model.config.name_or_path, most),
            )
        return min(left, self.tokens)


class Finite(LogitsProcessor):
    """Raises ValueError where a model's scores are no numbers, among which nothing can be chosen.

    Args:
        who: writes, for the message.
    """

    def __init__(self, who: str) -> None:
        self.who = who

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Returns the scores as they are; -inf rules a token out."""
        if not bool((scores < torch.inf).all()):
            raise ValueError(
                f"the scores of {self.who} after {input_ids.shape[1]} tokens are not finite; its weights may "
                "hold nan, as after a training that diverged: load another, or train it again"
            )
        return scores


def write(name: str, asked: Asked, *, adapter: Path | None, stream: bool) -> None:
    """Writes the continuation of a prompt to standard output, token by token or as one JSON document.

    Args:
        name: of the model, as :func:`nonet.hf.load_pretrained` takes it.
        asked: what is to be written.
        adapter: the directory of an adapter for the model.
        stream: write each token as it comes, and not all at the end.

    Raises:
        ValueError: the model or the adapter cannot be read, or cannot write this.
    """
    _quiet()
    model, tokenizer = load_pretrained(name)
    if adapter is not None:
        model = load_adapter(model, adapter)
    set_seed(asked.seed)
    ids = asked.ids(tokenizer).to(model.device)
    who = name if adapter is None else f"{name} with {adapter}"
    new = asked.new(model, ids.shape[1])
    stream = stream and not asked.as_json
    if stream:
        sys.stdout.write(asked.shown)
    began = time.perf_counter()
    with torch.no_grad():
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            streamer=_streamer(tokenizer) if stream else None,
            logits_processor=LogitsProcessorList([Finite(who)]),
            do_sample=bool(asked.temperature),
            **_PLAIN,
            **asked.sampling,
        )
    seconds = time.perf_counter() - began
    written = out[0, ids.shape[1] :]
    text = tokenizer.decode(written, skip_special_tokens=True)
    if asked.as_json:
        figures = {"tokens": len(written), "seconds": seconds, "tokens_per_second": len(written) / seconds}
        sys.stdout.write(to_json({"prompt": asked.prompt, "text": text, **figures, "seed": asked.seed}))
    elif not stream:
        sys.stdout.write(f"{asked.shown}{text}\n")


def write_in_tandem(name: str, directory: Path, asked: Asked, *, block: int, dtype: str) -> None:
    """Writes the continuation of a prompt, drafted by a tandem's secondary and verified by its primary.

    Args:
        name: of the primary, as :func:`nonet.hf.load_pretrained` takes it.
        directory: of the tandem.
        asked: what is to be written.
        block: tokens to draft in a round.
        dtype: of the weights.

    Raises:
        ValueError: the model or the tandem cannot be read, do not fit each other, or cannot write this.
    """
    from nonet.tandem import Tandem, stream_weights

    _quiet()
    primary, tokenizer = load_pretrained(name, getattr(torch, dtype))
    tandem = Tandem.from_pretrained(directory, primary)
    for part in (primary, tandem.secondary):
        stream_weights(part)
    set_seed(asked.seed)
    ids = asked.ids(tokenizer).to(primary.device)
    new = asked.new(primary, ids.shape[1], ahead=block)
    if not asked.as_json:
        sys.stdout.write(asked.shown)
    began = time.perf_counter()
    out, stats = tandem.generate(
        ids,
        max_new_tokens=new,
        block=block,
        streamer=None if asked.as_json else _streamer(tokenizer),
        logits_processor=LogitsProcessorList([Finite(f"{name} with {directory}")]),
        return_stats=True,
        do_sample=bool(asked.temperature),
        **asked.sampling,
    )
    seconds = time.perf_counter() - began
    if asked.as_json:
        figures = {
            "text": tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True),
            "tokens": stats.tokens,
            "seconds": seconds,
            "tokens_per_second": stats.tokens / seconds,
            "drafted": stats.drafted,
            "accepted": stats.accepted,
            "rounds": stats.rounds,
            "seed": asked.seed,
        }
        sys.stdout.write(to_json({"prompt": asked.prompt, **figures}))


def _streamer(tokenizer: Any) -> TextStreamer:
    return TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)


def _quiet() -> None:
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
