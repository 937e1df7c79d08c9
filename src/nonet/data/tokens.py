"""A corpus as tokens in memory-mapped files, kept in the user's cache under a key of their content."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from nonet.data.corpus import Corpus
from nonet.data.split import SPLITS
from nonet.data.tokenizer import Coder, coder
from nonet.writing import FULL, cannot_write, remove_abandoned, write_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1  # raise when the files below change their meaning; older ones are then left alone

_SUMMARY = "summary.json"
CACHE_ADVICE = "set NONET_CACHE to another folder"


@dataclass(frozen=True, eq=False)
class EncodedCorpus:
    """The tokens of a corpus; the arrays are memory-mapped and read-only.

    Attributes:
        name: the corpus's name.
        tokenizer: the tokenizer's name.
        train: token ids ``(tokens,)``, each document followed by ``eos_id``; uint16, or uint32 for a
            vocabulary above 65536.
        validation: the same for validation.
        test: the same for test.
        bytes: part -> bytes of its text.
        vocab_size: one more than the largest id of the tokenizer.
        eos_id: ends a document.
        lead: what the tokenizer puts before a text, and a window of tokens begins with; often nothing.
        folder: where the files are.
    """

    name: str
    tokenizer: str
    train: NDArray = field(repr=False)
    validation: NDArray = field(repr=False)
    test: NDArray = field(repr=False)
    bytes: dict[str, int]
    vocab_size: int
    eos_id: int
    lead: tuple[int, ...]
    folder: Path

    @property
    def bytes_per_token(self) -> dict[str, float]:
        """Part -> mean bytes of text a token; ends of documents count as tokens and have no bytes."""
        return {split: self.bytes[split] / len(getattr(self, split)) for split in SPLITS}

    def bits_per_byte(self, nats_per_token: float, split: str = "validation") -> float:
        r"""Returns a mean loss in a unit that compares between tokenizers.

        .. math:: \text{bits per byte} = \frac{\text{nats per token}}{\ln 2} \cdot
            \frac{\text{tokens}}{\text{bytes}}

        Args:
            nats_per_token: mean cross-entropy, in nats.
            split: the part that it was measured on.
        """
        return nats_per_token / math.log(2) / self.bytes_per_token[split]


def encode_corpus(
    corpus: Corpus,
    tokenizer: str | PreTrainedTokenizerBase = "bytes",
    cache_dir: str | Path | None = None,
) -> EncodedCorpus:
    """Returns the tokens of a corpus, from the cache if the same text was encoded the same way before.

    All files are written before one is put in place, so that a run that is killed leaves nothing half-written
    and two at once do no harm. Files that are damaged, or of something else, are written again.

    Args:
        corpus: the text.
        tokenizer: ``"bytes"``; or a Transformers tokenizer, its folder, or its name on the hub
            (which is asked only for what has no copy here).
        cache_dir: the folder for token files; ``NONET_CACHE`` or the user's cache by default.

    Returns:
        The token arrays and their sizes.

    Raises:
        ValueError: the tokenizer cannot be loaded or used.
        OSError: the files cannot be written; the message names the folder and what to do.
        RuntimeError: the text changed after the corpus was loaded.

    Complexity: one pass over the text the first time; a few file openings after that.
    """
    code = coder(tokenizer)
    identity = {
        "format": FORMAT,
        "corpus": corpus.fingerprint,
        "tokenizer": code.fingerprint,
        "vocab_size": code.vocab_size,
        "eos_id": code.eos_id,
    }
    key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:32]
    folder = cache_folder(cache_dir) / "tokens" / key
    remove_abandoned(folder)
    kept = _read(folder, identity)
    if kept is None:
        _write(folder, corpus, code, identity)
        kept = _read(folder, identity)
    if kept is None:
        raise RuntimeError(f"the token files in {folder} were damaged as they were written; try again")
    arrays, sizes = kept
    return EncodedCorpus(
        name=corpus.name,
        tokenizer=code.name,
        **arrays,
        bytes=sizes,
        vocab_size=code.vocab_size,
        eos_id=code.eos_id,
        lead=code.lead,
        folder=folder,
    )


def cache_folder(given: str | Path | None = None) -> Path:
    """Returns the folder for files that can be made anew: ``given``, ``NONET_CACHE``, or the user's cache."""
    chosen = given or os.environ.get("NONET_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("nonet", appauthor=False)


def _dtype(code: Coder) -> np.dtype:
    return np.dtype("<u2" if code.vocab_size <= 1 << 16 else "<u4")


def _read(folder: Path, identity: dict[str, Any]) -> tuple[dict[str, NDArray], dict[str, int]] | None:
    """Returns the arrays and the bytes of their text, or None unless all is there and whole."""
    try:
        summary = json.loads((folder / _SUMMARY).read_text(encoding="utf-8"))
        if summary["identity"] != identity:
            return None
        arrays: dict[str, NDArray] = {}
        for split in SPLITS:
            path, tokens = folder / f"{split}.npy", int(summary["tokens"][split])
            dtype, header = np.dtype(summary["dtype"]), io.BytesIO()
            _write_header(header, dtype, tokens)
            head = header.getvalue()
            if path.stat().st_size != len(head) + tokens * dtype.itemsize:
                return None
            with path.open("rb") as file:
                if file.read(len(head)) != head:
                    return None
            arrays[split] = np.memmap(path, dtype, mode="r", offset=len(head), shape=(tokens,))
        return arrays, {split: int(summary["bytes"][split]) for split in SPLITS}
    except (OSError, OverflowError, RecursionError, ValueError, KeyError, TypeError):
        return None


def _write(folder: Path, corpus: Corpus, code: Coder, identity: dict[str, Any]) -> None:
    def write(fresh: Path) -> None:
        tokens, sizes = {}, {}
        for split in SPLITS:
            with (fresh / f"{split}.npy").open("wb") as file:
                tokens[split], sizes[split] = _write_tokens(file, corpus.documents[split], code)
        if corpus.changed():
            raise RuntimeError(f"{corpus.name} changed on disk after it was loaded; load it again")
        summary = {"identity": identity, "dtype": _dtype(code).str, "tokens": tokens, "bytes": sizes}
        (fresh / _SUMMARY).write_text(json.dumps(summary, indent=1, allow_nan=False), encoding="utf-8")

    try:
        write_folder(folder, write, _SUMMARY, shared=True, advice=CACHE_ADVICE)
    except OSError as error:
        if error.errno not in FULL:
            raise
        most = _dtype(code).itemsize * sum(len(d) + 1 for s in SPLITS for d in corpus.documents[s])
        advice = f"{CACHE_ADVICE} (tokens of this text need up to {most:,} bytes)"
        raise cannot_write(folder, OSError(error.errno, os.strerror(error.errno)), advice) from error


def _write_tokens(file: BinaryIO, documents: Iterable[bytes], code: Coder) -> tuple[int, int]:
    """Writes one ``.npy`` file as it goes: a full disk is then an error, where a map would crash."""
    dtype = _dtype(code)
    end = np.array([code.eos_id], dtype)
    tokens = size = 0
    _write_header(file, dtype, 0)
    for document in documents:
        for ids in chain(code.encode(document), (end,)):
            file.write(ids.astype(dtype).tobytes())
            tokens += len(ids)
        size += len(document)
    file.seek(0)
    _write_header(file, dtype, tokens)  # as long as the first: the format leaves room for the count
    return tokens, size


def _write_header(file: IO[bytes], dtype: np.dtype, tokens: int) -> None:
    np.lib.format.write_array_header_1_0(
        file,
        {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (tokens,)},
    )
