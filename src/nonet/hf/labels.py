"""How a model that was taught labels is asked for one, kept beside it as ``labels.json``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nonet.files import read_json, reading, to_json
from nonet.prompt import PET, Pattern, Verbalizer
from nonet.shapes import check_whole

FILE = "labels.json"


@dataclass(frozen=True)
class Question:
    """The pattern that puts a text to a model, and the words that stand for each label.

    Attributes:
        pattern: a template with ``{text}`` and ``{blank}``.
        words: of each label.
        max_length: the most tokens of a text in the pattern.
    """

    pattern: str
    words: Mapping[str, Sequence[str]]
    max_length: int

    def ask(self, model: Any, tokenizer: Any) -> PET:
        """Returns what classifies texts with the model."""
        words = Verbalizer(self.words)
        return PET(model, tokenizer, Pattern(self.pattern), words, max_length=self.max_length)

    def save(self, directory: Path) -> None:
        """Writes ``labels.json`` into a directory."""
        (directory / FILE).write_text(to_json(asdict(self)), encoding="utf-8")


def load_question(directory: Path) -> Question:
    """Returns the question that a directory keeps.

    Raises:
        ValueError: it keeps none, or the file is damaged.
    """
    file = directory / FILE
    if not file.is_file():
        raise ValueError(
            f"{directory} holds no {FILE}, so it was not taught labels; give what nonet finetune wrote for "
            "labelled examples"
        )
    with reading(file):
        question = Question(**read_json(file))
        Verbalizer(question.words), Pattern(question.pattern)
        check_whole(max_length=question.max_length)
    return question
