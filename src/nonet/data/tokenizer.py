"""Text to token ids: bytes by default, or any Transformers tokenizer."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from nonet.hub import directory, from_hub

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END = "<|end|>"  # ends a document; id 256 of the byte tokenizer

_STRETCH = 1 << 18  # characters that a tokenizer is given at once: its memory is many times its text


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Returns the tokenizer whose ids 0 to 255 are the bytes of UTF-8, and 256 the end of a document.

    Saved beside a model it is loaded by ``AutoTokenizer`` without this package. Every text is encoded
    as its bytes, also one that spells ``<|end|>``. It pads on the left, with the end of a document.

    Complexity: linear in the text. Source: the byte-level alphabet of GPT-2 (Radford et al. 2019).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # The byte-level alphabet: printable bytes spell themselves, the others follow from chr(256) on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte): byte for byte in printable}
    vocabulary |= {chr(256 + i): byte for i, byte in enumerate(others)}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=END,
        padding_side="left",
        split_special_tokens=True,
    )


def lead_ids(tokenizer: Any) -> list[int]:
    """Returns the ids that a tokenizer puts before every text, such as that of a first token; often none."""
    coded = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    special = coded["special_tokens_mask"]
    return coded["input_ids"][: special.index(0) if 0 in special else 0]


def end_id(tokenizer: Any) -> int:
    """Returns the id that ends a text; raises ValueError where a tokenizer has none."""
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if end is None:
        name = tokenizer.name_or_path or type(tokenizer).__name__
        raise ValueError(f"tokenizer {name!r} has no token that ends a document; set its eos_token")
    return int(end)


def prompt_ids(tokenizer: Any, text: str) -> list[int]:
    """Returns the ids after which a model continues a text.

    These are what the tokenizer puts before a text, and the text's own; what it puts after one would end it.
    For an empty text it is the first of these alone, or an end of text, after which another begins.
    """
    ids = [*lead_ids(tokenizer), *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    return ids or [end_id(tokenizer)]


class Coder(Protocol):
    """What turns documents into ids; ``lead`` is what a model is given before a text."""

    name: str
    fingerprint: str
    vocab_size: int
    eos_id: int
    lead: tuple[int, ...]

    def encode(self, document: bytes) -> Iterator[NDArray]:
        """Yields the ids of a document, stretch by stretch."""


class ByteCoder:
    """Bytes as ids: what :func:`byte_tokenizer` does, at the speed of a copy."""

    name = "bytes"
    fingerprint = "bytes"
    vocab_size = 257
    eos_id = 256
    lead: tuple[int, ...] = ()

    def encode(self, document: bytes) -> Iterator[NDArray]:
        """Yields the bytes of a document."""
        yield np.frombuffer(document, np.uint8)


class TransformersCoder:
    """A Transformers tokenizer; special tokens that a text spells are encoded as plain text.

    A document longer than 256 Ki characters is encoded in stretches of whole lines.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.name = tokenizer.name_or_path or type(tokenizer).__name__
        if not tokenizer.is_fast:
            raise ValueError(f"tokenizer {self.name!r} has no fast form; give one that has, or 'bytes'")
        self.eos_id = end_id(tokenizer)
        self.lead = tuple(lead_ids(tokenizer))
        self.vocab_size = max(tokenizer.get_vocab().values()) + 1  # ids may have gaps
        self._tokenizer = tokenizer
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        for passing in ("truncation", "padding"):  # left from the last call, and not used here
            rules.pop(passing, None)
        self.fingerprint = hashlib.sha256(json.dumps(rules).encode()).hexdigest()

    def encode(self, document: bytes) -> Iterator[NDArray]:
        """Yields the ids of a document, without the special tokens of a model's input."""
        for text in _stretches(document.decode()):
            ids = self._tokenizer(
                text,
                add_special_tokens=False,
                split_special_tokens=True,
                truncation=False,
                return_attention_mask=False,
                verbose=False,
            )
            yield np.asarray(ids["input_ids"], np.uint32)


def _stretches(text: str) -> Iterator[str]:
    begin = 0
    while begin < len(text):
        end = text.find("\n", begin + _STRETCH) + 1 or len(text)
        yield text[begin:end]
        begin = end


def load_tokenizer(name: str) -> Any:
    """Returns the Transformers tokenizer of a name: ``"bytes"``, a directory, or ``owner/name`` on the hub.

    Raises:
        ValueError: there is no such tokenizer, or it would have to run code of its own.
    """
    if name == "bytes":
        return byte_tokenizer()
    from transformers import AutoTokenizer

    place = directory(name)
    read = functools.partial(AutoTokenizer.from_pretrained, trust_remote_code=False)
    try:
        if place is None:
            return from_hub(name, read)
        if not place.is_dir():
            raise FileNotFoundError(f"{place} is no directory")
        return read(place, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no tokenizer could be loaded from {name!r}; give 'bytes', a folder with a tokenizer, "
            f"or owner/name on the hub ({error})"
        ) from error


def coder(tokenizer: Any) -> Coder:
    """Returns the coder for ``"bytes"``, a tokenizer's folder or hub name, or a tokenizer."""
    if tokenizer == "bytes":
        return ByteCoder()
    if not isinstance(tokenizer, str):
        return TransformersCoder(tokenizer)
    return TransformersCoder(load_tokenizer(tokenizer))
