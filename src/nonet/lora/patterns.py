"""Regular expressions out of a file, matched within a limit of time, since some would take for ever."""

from __future__ import annotations

import time
from collections.abc import Iterable

import regex

SECONDS = 5.0  # for all patterns of one file; those that people write take milliseconds


class Patterns:
    """Matches the patterns of one file with texts, as ``re.fullmatch`` does.

    Args:
        source: the file, for messages.
    """

    def __init__(self, source: str) -> None:
        self._source, self._left = source, SECONDS

    def fits(self, pattern: str, text: str, starts: Iterable[int] = (0,)) -> bool:
        """Says whether a pattern matches a text from one of some places up to its end.

        Raises:
            ValueError: it is no regular expression, or the patterns of the file take too long.
        """
        began = time.monotonic()
        shown = repr(pattern if len(pattern) <= 100 else f"{pattern[:100]}...")
        try:
            compiled = regex.compile(pattern)
            return any(compiled.fullmatch(text, at, timeout=max(self._left, 1e-3)) for at in starts)
        except (regex.error, RecursionError) as error:
            raise ValueError(f"{self._source}: {shown} is no regular expression: {error}") from None
        except TimeoutError:
            raise ValueError(
                f"{self._source}: the pattern {shown} takes too long to match; list the names instead"
            ) from None
        finally:
            self._left -= time.monotonic() - began
