"""Words that stand for labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Verbalizer:
    """Words that a language model may put into the blank, for each label.

    A word may be several tokens, and a label may have several words; its score is then their mean.

    Args:
        words: label -> its word or words, ``{"good": ["great", "fine"], "bad": "terrible"}`` for example.

    Raises:
        ValueError: there are fewer labels than two, or a label has no word, or a word is empty.

    Source: Schick and Schuetze 2020 (2001.07676), section 3.1.
    """

    words: Mapping[str, Sequence[str]]

    def __post_init__(self) -> None:
        if len(self.words) < 2:
            raise ValueError(f"words must have two labels or more; got {list(self.words)}")
        several = {label: (w,) if isinstance(w, str) else tuple(w) for label, w in self.words.items()}
        for label, words in several.items():
            if not words or not all(isinstance(word, str) and word.strip() for word in words):
                raise ValueError(f"words of the label {label!r} must be texts, one or more; got {words!r}")
        object.__setattr__(self, "words", several)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels, in the order of every tensor of scores."""
        return tuple(self.words)

    def encode(self, tokenizer: Any, lead: str = "") -> list[list[tuple[int, ...]]]:
        """Returns the tokens of every word of every label.

        Args:
            tokenizer: a tokenizer of Transformers.
            lead: what stands in front of the word, as :attr:`nonet.prompt.Pattern.lead` says.

        Raises:
            ValueError: the tokenizer does not know a word, or cannot tell two of them apart.
        """
        seen: dict[tuple[int, ...], str] = {}
        coded: list[list[tuple[int, ...]]] = []
        for label, words in self.words.items():
            coded.append([])
            for word in words:
                tokens = tuple(tokenizer(lead + word.strip(), add_special_tokens=False)["input_ids"])
                name = f"the word {word!r} of the label {label!r}"
                if not tokens or tokenizer.unk_token_id in tokens:
                    raise ValueError(f"{name} has tokens that the tokenizer does not know")
                if tokens in seen:
                    raise ValueError(f"{name} is the same to the tokenizer as {seen[tokens]}")
                seen[tokens] = name
                coded[-1].append(tokens)
        return coded
