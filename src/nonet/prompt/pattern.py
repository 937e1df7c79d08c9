"""A question with a blank: what a text is put into, so that a language model names its label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from string import Formatter
from typing import Any, NamedTuple, TypeAlias

Example: TypeAlias = str | Mapping[str, str]

_BLANK = "blank"


class _Piece(NamedTuple):
    literal: str
    lead: str  # a space that stands between the literal and what follows it
    name: str | None


@dataclass(frozen=True)
class Pattern:
    """A template with named fields of the text and one blank, ``"{text} It was {blank}."`` for example.

    A space in front of a field or of the blank belongs to what follows it, since tokenizers that split text
    into bytes write it into the next token. ``{{`` stands for a brace.

    Args:
        template: text with fields such as ``{text}``, or ``{premise}`` and ``{hypothesis}``, and ``{blank}``
            once.

    Raises:
        ValueError: the template has no field, or another number of blanks than one, or is malformed.

    Source: Schick and Schuetze 2020 (2001.07676), section 3.1.
    """

    template: str

    def __post_init__(self) -> None:
        names = [piece.name for piece in self._pieces]
        if names.count(_BLANK) != 1:
            raise ValueError(f"template must hold {{blank}} once; got {self.template!r}")
        if not self.fields:
            raise ValueError(f"template must hold a field such as {{text}}; got {self.template!r}")

    @cached_property
    def _pieces(self) -> list[_Piece]:
        try:
            parts = list(Formatter().parse(self.template))
        except ValueError as error:
            raise ValueError(f"template={self.template!r} is malformed: {error}") from None
        pieces = []
        for literal, name, spec, conversion in parts:
            if name is not None and (spec or conversion or not name.isidentifier()):
                raise ValueError(f"a field of the template must be a plain name; got {{{name}}}")
            lead = " " if name is not None and literal.endswith(" ") else ""
            pieces.append(_Piece(literal.removesuffix(lead), lead, name))
        return pieces

    @property
    def fields(self) -> tuple[str, ...]:
        """Names that an example must give, in the order of the template."""
        names = (piece.name for piece in self._pieces)
        return tuple(dict.fromkeys(name for name in names if name not in (None, _BLANK)))

    @property
    def lead(self) -> str:
        """What stands between the blank and the text before it: one space, or nothing."""
        return next(piece.lead for piece in self._pieces if piece.name == _BLANK)

    @property
    def ends_in_blank(self) -> bool:
        """Whether nothing follows the blank, as a causal model needs."""
        return self._pieces[-1].name == _BLANK

    def encode(
        self, tokenizer: Any, example: Example, *, room: int = 1, max_length: int = 256
    ) -> tuple[list[int], list[int]]:
        """Returns the tokens before the blank and those behind it, special tokens of the model included.

        Where all is longer than ``max_length``, the longest field loses tokens from its end until it is not
        (longest first, as in the paper's code). Words of the template are never cut.

        Args:
            tokenizer: a tokenizer of Transformers.
            example: the text, where the template has one field, or a mapping from fields to texts.
            room: tokens to leave free for the blank.
            max_length: tokens of the whole, the blank's included.

        Raises:
            ValueError: a field is missing, or the template alone is longer than ``max_length``.
            TypeError: a field is not a text.
        """
        texts: list[str] = []
        fields: list[int] = []
        for literal, lead, name in self._pieces:
            texts.append(literal)
            if name == _BLANK:
                blank = len(texts)
            elif name is not None:
                value = self._value(example, name).strip()
                fields.append(len(texts))
                texts.append(lead + value if value else "")
        ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        first, last = _around(tokenizer)
        words = sum(len(ids[i]) for i in range(len(ids)) if i not in fields)
        spare = max_length - len(first) - words - room - len(last)
        if spare < 0:
            raise ValueError(
                f"max_length={max_length} is too short for the template {self.template!r}, which takes "
                f"{max_length - spare} tokens without its fields"
            )
        for i in fields:
            del ids[i][spare:]
        for _ in range(sum(len(ids[i]) for i in fields) - spare):
            max((ids[i] for i in fields), key=len).pop()
        return [*first, *chain(*ids[:blank])], [*chain(*ids[blank:]), *last]

    def _value(self, example: Example, name: str) -> str:
        if isinstance(example, str):
            if len(self.fields) != 1:
                raise ValueError(f"example must be a mapping with {', '.join(self.fields)}; got a text")
            return example
        if name not in example:
            raise ValueError(f"example must have the field {name!r}; got {', '.join(map(repr, example))}")
        value = example[name]
        if not isinstance(value, str):
            raise TypeError(f"the field {name!r} of an example must be a text; got {value!r}")
        return value


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and behind a text."""
    coded = tokenizer("a", return_special_tokens_mask=True)
    ids, special = coded["input_ids"], coded["special_tokens_mask"]
    start, end = special.index(0), len(ids) - special[::-1].index(0)
    return ids[:start], ids[end:]
