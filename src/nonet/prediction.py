"""Labels for texts by a model that was taught them."""

from __future__ import annotations

import sys
from pathlib import Path

from transformers.utils import logging

from nonet.data.examples import read_texts
from nonet.files import to_json
from nonet.hf.adapters import load_adapter
from nonet.hf.labels import load_question
from nonet.hf.pretrained import load_pretrained
from nonet.hub import directory
from nonet.screen import printable

_AT_ONCE = 64  # texts whose labels are written together


def predict(name: str, file: Path, *, adapter: Path | None, as_json: bool) -> None:
    """Writes a label a text to standard output, in their order, or all with probabilities as one document.

    Args:
        name: of the model, as :func:`nonet.hf.load_pretrained` takes it.
        file: a text a line, or a table with a column ``text``.
        adapter: the directory of an adapter that was taught labels; else the model itself was.
        as_json: one document with the probability of every label for each text.

    Raises:
        ValueError: the model was not taught labels, or cannot be read; or a text is no text.
        FileNotFoundError: there is no such file.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    home = adapter or directory(name)
    if home is None:
        raise ValueError(f"{name} is a model on the hub; give the --adapter that was taught labels")
    question = load_question(home)
    texts = read_texts(file)
    model, tokenizer = load_pretrained(name)
    if adapter is not None:
        model = load_adapter(model, adapter)
    pet = question.ask(model, tokenizer)
    labels = pet.verbalizer.labels
    who = name if adapter is None else f"{name} with {adapter}"
    found: list[dict[str, object]] = []
    for first in range(0, len(texts), _AT_ONCE):
        scores = pet.scores(texts[first : first + _AT_ONCE])
        if not bool(scores.isfinite().all()):
            raise ValueError(
                f"the scores of {who} are no finite numbers; its weights may hold nan: teach it again"
            )
        for row, best in zip(scores.softmax(-1).tolist(), scores.argmax(-1).tolist(), strict=True):
            found.append({"label": labels[best], "probabilities": dict(zip(labels, row, strict=True))})
            if not as_json:
                sys.stdout.write(f"{printable(labels[best])}\n")
        sys.stdout.flush()
    if as_json:
        sys.stdout.write(to_json({"model": name, "file": str(file), "predictions": found}))
