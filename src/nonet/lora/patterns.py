"""Regular expressions out of a file, matched in bounded time.

Python's own engine tries one way through a pattern after another, and ``(a*)*b`` has too many for any
machine. Here a pattern moves the set of all places that it can have reached, so no way is gone twice, and the
steps that a file asks for are counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

STEPS = 100_000  # of one file, beside one for each character of a pattern; real ones need no more than those

_SINGLE = (sre.LITERAL, sre.NOT_LITERAL, sre.ANY, sre.IN)  # stand for one character
_WORD: Callable[[str], bool] = lambda c: c.isalnum() or c == "_"  # noqa: E731
_CATEGORIES: dict[Any, Callable[[str], bool]] = {
    sre.CATEGORY_DIGIT: str.isdecimal,
    sre.CATEGORY_NOT_DIGIT: lambda c: not c.isdecimal(),
    sre.CATEGORY_SPACE: str.isspace,
    sre.CATEGORY_NOT_SPACE: lambda c: not c.isspace(),
    sre.CATEGORY_WORD: _WORD,
    sre.CATEGORY_NOT_WORD: lambda c: not _WORD(c),
}


class Patterns:
    """Matches the patterns of one file with texts, as ``re.fullmatch`` does.

    Args:
        source: the file, for messages.
    """

    def __init__(self, source: str) -> None:
        self._source, self._steps = source, STEPS
        self._parsed: dict[str, Any] = {}

    def fits(self, pattern: str, text: str, starts: Iterable[int] = (0,)) -> bool:
        """Says whether a pattern matches a text from one of some places up to its end.

        Raises:
            ValueError: it is no regular expression, uses what only a backtracking engine serves, or the file
                asks for too many steps.
        """
        shown = repr(pattern if len(pattern) <= 100 else f"{pattern[:100]}...")
        try:
            if pattern not in self._parsed:
                self._parsed[pattern] = self._parse(pattern)
            parsed = self._parsed[pattern]
            if isinstance(parsed, re.Pattern):
                return any(parsed.fullmatch(text, at) for at in starts)
            self._steps += len(pattern)
            return len(text) in self._after(parsed, set(starts), text)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{self._source}: {shown} is no regular expression: {error}") from None
        except _Refused as error:
            raise ValueError(f"{self._source}: the pattern {shown} {error}; list the names instead") from None

    def _parse(self, pattern: str) -> Any:
        parsed = _parser.parse(pattern)
        if parsed.state.flags & ~sre.SRE_FLAG_UNICODE:
            raise _Refused("sets flags, which are not supported")
        # Without a choice there is one way only, and Python's engine is many times as fast.
        return re.compile(pattern) if all(op in (*_SINGLE, sre.AT) for op, _ in parsed) else parsed

    def _after(self, items: Any, places: set[int], text: str) -> set[int]:
        """Returns where a sequence can end that begins at one of some places."""
        for op, value in items:
            if not places:
                break
            self._steps -= 1
            if self._steps < 0:
                raise _Refused("takes too long to match")
            places = self._step(op, value, places, text)
        return places

    def _step(self, op: Any, value: Any, places: set[int], text: str) -> set[int]:
        if op in _SINGLE:
            return {at + 1 for at in places if at < len(text) and _is_one(op, value, text[at])}
        if op is sre.AT:
            return {at for at in places if _is_at(value, at, text)}
        if op is sre.SUBPATTERN and not value[1] and not value[2]:
            return self._after(value[3], places, text)
        if op is sre.BRANCH:
            return set().union(*(self._after(branch, places, text) for branch in value[1]))
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            low, high, body = value
            return self._repeated(low, high, body, places, text)
        if op in (sre.ASSERT, sre.ASSERT_NOT) and value[0] > 0:
            return {at for at in places if bool(self._after(value[1], {at}, text)) == (op is sre.ASSERT)}
        raise _Refused(f"uses {str(op).lower()}, which is not supported")

    def _repeated(self, low: int, high: int, items: Any, places: set[int], text: str) -> set[int]:
        """More repetitions than there are places reach nothing new."""
        low, high = (min(count, len(text) + 1) for count in (low, high))
        for _ in range(low):
            places = self._after(items, places, text)
        reached = set(places)
        for _ in range(high - low):
            places = self._after(items, places, text) - reached
            if not places:
                break
            reached |= places
        return reached


class _Refused(Exception):  # noqa: N818  (it becomes a ValueError with the pattern's name)
    """Says what a pattern does that is not served."""


def _is_one(op: Any, value: Any, char: str) -> bool:
    """Says whether an item that stands for one character stands for this one."""
    if op is sre.LITERAL:
        return ord(char) == value
    if op is sre.NOT_LITERAL:
        return ord(char) != value
    if op is sre.ANY:
        return char != "\n"
    if op is sre.RANGE:
        return value[0] <= ord(char) <= value[1]
    if op is sre.CATEGORY:
        return _CATEGORIES[value](char)
    inverted = value[0][0] is sre.NEGATE
    return any(_is_one(inner, of, char) for inner, of in value[inverted:]) != inverted


def _is_at(value: Any, at: int, text: str) -> bool:
    if value in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING):
        return at == 0
    if value in (sre.AT_END, sre.AT_END_STRING):
        return at == len(text)
    borders = _WORD(text[at - 1 : at] or " ") != _WORD(text[at : at + 1] or " ")
    return borders == (value is sre.AT_BOUNDARY)
