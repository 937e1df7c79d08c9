"""What reaches a screen: the one place that prints text which is not ours.

Names of files, columns, tensors and labels, and what a model writes, may hold escape sequences that change a
terminal, or marks that Rich takes for colours. They are shown as they are spelled.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from rich.console import Console
from rich.text import Text

# Control characters but tab and newline; marks that turn the direction of writing; halves of pairs.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """Returns a text whose characters a terminal only shows; others are spelled by their number."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def console(stderr: bool = False) -> Console:
    """Returns where people are told things: each line as it is, without marks, made printable."""
    return _Console(stderr=stderr, markup=False, highlight=False, emoji=False)


class Printable(logging.Formatter):
    """Writes the message of a record, made printable."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        return printable(super().format(record))


class _Console(Console):
    def print(self, *objects: Any, **options: Any) -> None:
        """Prints lines as long as they are, so that paths can be copied, and tables as wide as the screen."""
        lines = all(isinstance(one, str) for one in objects)
        super().print(*objects, **{"soft_wrap": lines, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Returns a string as what Rich prints; cells of tables pass here too."""
        return super().render_str(printable(text), **options)
