"""JSON as every command writes it."""

from __future__ import annotations

import json
from typing import Any


def to_json(value: Any) -> str:
    """Returns a JSON document of plain values, in ASCII, with a newline at its end.

    Raises:
        ValueError: a number is not finite, which JSON does not know.
    """
    return json.dumps(value, indent=1, allow_nan=False) + "\n"
