"""Text as it comes in: files that must be UTF-8, and what is typed or piped."""

from __future__ import annotations

import codecs
import os
import sys
from pathlib import Path

BOM = codecs.BOM_UTF8

# The longer first: UTF-32's begins with UTF-16's.
_OTHERS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def flaw(path: Path) -> str | None:
    """Returns why a file is no UTF-8 text, or None; line by line, so that any size fits in memory."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if offset == 0:
                for mark, name in _OTHERS.items():
                    if line.startswith(mark):
                        return f"it is {name} (convert it with: iconv -f {name} -t UTF-8)"
            nul = line.find(b"\0")
            if nul >= 0:
                return f"byte {offset + nul} is NUL"
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"byte {offset + error.start} is not UTF-8"
            offset += len(line)
    return None


def check_text(path: Path) -> None:
    """Raises ValueError for a file that is empty or no UTF-8 text."""
    found = flaw(path) if path.stat().st_size else "it is empty"
    if found:
        raise ValueError(f"{path} is no text: {found}; give a file of UTF-8 text")


def typed(text: str, option: str) -> str:
    """Returns an argument of the command line as the UTF-8 text that was typed, whatever the locale.

    Raises:
        ValueError: the bytes that were typed are not UTF-8; the message names the option.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(text).decode("utf-8")  # Python kept as halves of pairs what its locale lacks
        except UnicodeError:
            raise ValueError(f"{option} is no UTF-8 text; got {text!a}") from None
    return text


def given_prompt(prompt: str | None) -> str:
    """Returns the text of ``--prompt``: what standard input holds for ``-``, and for None where it is a pipe.

    The newline that ends the input is not part of it.

    Raises:
        ValueError: it is no UTF-8 text.
    """
    if prompt is None and (sys.stdin is None or sys.stdin.isatty()):
        return ""
    if prompt is not None and prompt != "-":
        return typed(prompt, "--prompt")
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"standard input is no UTF-8 text: byte {error.start} is not") from None
