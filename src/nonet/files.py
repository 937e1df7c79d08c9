"""Files of models and adapters, read whole or refused with one sentence on what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_json(path: str | Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or its JSON is no object or not of Unicode; the message names the file.
    """
    text = Path(path).read_bytes()
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair parses, and is no text
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8 among them
        raise ValueError(f"{path} is no JSON: {error}; write or copy the file again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, {{...}}; got a {type(found).__name__}")
    return found


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file by name, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no safetensors file, or is cut short; the message names the file.
    """
    if Path(path).is_dir():
        raise ValueError(f"{path} must be a safetensors file; it is a folder")
    try:
        return load_file(path)
    except SafetensorError as error:
        size = f"{Path(path).stat().st_size:,} bytes"
        raise ValueError(
            f"{path} is no whole safetensors file ({size}): {error}; write or copy the file again"
        ) from None


@contextmanager
def reading(place: object) -> Iterator[None]:
    """Turns whatever a library raises while it reads somebody's file into a ValueError that names the file.

    Libraries that parse a model's files raise errors of every class for files that are damaged, and few name
    the file. What is missing here, a package or a file, is told as it is.

    Raises:
        ValueError: the file or directory, called ``place``, could not be read.
    """
    try:
        yield
    except (ImportError, OSError):
        raise
    except Exception as error:
        why = " ".join(str(error).split())  # in one line
        if isinstance(error, ValueError):  # which says what is wrong, and perhaps where
            raise ValueError(why if str(place) in why else f"{place}: {why}") from error
        why = f"{type(error).__name__}: {why}"
        raise ValueError(f"{place} cannot be read ({why}); write or copy it again") from error


def to_json(value: Any) -> str:
    """Returns a JSON document of plain values, in ASCII, with a newline at its end.

    Raises:
        ValueError: a number is not finite, which JSON does not know.
    """
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
