"""What the name of a model or a tokenizer means: a directory here, or ``owner/name`` on the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.error import HTTPError
from urllib.request import Request, urlopen

T = TypeVar("T")

_ON_THE_HUB = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_OUTPUTS = "runs"  # where commands write by default
_PATIENCE = 5.0  # seconds


def directory(name: str | Path) -> Path | None:
    """Returns the directory that a name means, or None for a name on the hub.

    A name is looked up on the hub only when it reads ``owner/name`` and nothing here is called ``owner``.
    Every other name is a path: one that begins with ``.``, ``/`` or ``~``, has no slash, several, or one at
    its end, or lies in ``runs/``, where commands write.
    """
    text = str(name)
    owner = text.partition("/")[0]
    hub = _ON_THE_HUB.fullmatch(text) and owner != _OUTPUTS and not Path(owner).exists()
    return None if hub and not isinstance(name, Path) else expanded(text)


def expanded(path: str | Path) -> Path:
    """Returns a path with ``~`` replaced by the home directory; raises ValueError for an unknown user's."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise ValueError(f"{path} begins with the home directory of a user who does not exist here") from None


def from_hub(name: str, read: Callable[..., T]) -> T:
    """Returns what ``read`` makes of a name on the hub; the hub is asked only for what has no copy here.

    Args:
        name: ``owner/name``.
        read: a ``from_pretrained`` of Transformers, or a function that hands ``local_files_only`` on to one.

    Raises:
        OSError: there is no copy here, and the hub cannot be reached, may not be asked, or has no such name.
    """
    try:
        return read(name, local_files_only=True)
    except OSError:
        why = _unreachable()
    if why:
        raise OSError(
            f"there is no directory {name} here and no copy of {name} in the cache of the hub, and {why}; "
            "give the path of a directory, or a name on the hub when it can be reached"
        )
    return read(name, local_files_only=False)


def _unreachable() -> str | None:
    """Returns why the hub cannot be asked, found in seconds; Transformers itself tries for half a minute."""
    from huggingface_hub import constants, is_offline_mode

    if is_offline_mode():
        return "HF_HUB_OFFLINE is set"
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_PATIENCE).close()
    except HTTPError:  # it answers
        return None
    except OSError as error:
        return f"the hub at {constants.ENDPOINT} cannot be reached ({getattr(error, 'reason', error)})"
    return None
