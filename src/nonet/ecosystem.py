"""The versions of Transformers that nonet serves, and what differs between them.

Up to 5.23 a model takes and returns its cache as ``past_key_values``, Mamba models as ``cache_params``; from
5.24 on every model calls it ``cache``.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping
from typing import Any

import transformers
from packaging.version import Version
from transformers.modeling_outputs import BaseModelOutputWithPast

OLDEST, NEWEST = "5.23.0", "5.24.0"  # the gate runs against both

CACHE_NAMES = ("cache", "past_key_values", "cache_params")
CACHE = next(name for name in CACHE_NAMES if name in BaseModelOutputWithPast.__dataclass_fields__)

if Version(transformers.__version__) < Version(OLDEST):
    raise ImportError(
        f"Transformers {transformers.__version__} is installed, and nonet needs {OLDEST} or later; "
        f"run pip install 'transformers>={OLDEST}'"
    )
if Version(transformers.__version__).release[:2] > Version(NEWEST).release[:2]:
    warnings.warn(
        f"Transformers {transformers.__version__} is installed; nonet is tested with {OLDEST} to {NEWEST}",
        UserWarning,
        stacklevel=2,
    )


def cache_name(forward: Callable[..., Any]) -> str | None:
    """Returns the name of the argument by which a forward pass takes its cache, or None if it takes none."""
    takes = inspect.signature(forward).parameters
    return next((name for name in CACHE_NAMES if name in takes), None)


def cache_argument(forward: Callable[..., Any], cache: Any) -> dict[str, Any]:
    """Returns a cache as the keyword argument of a forward pass; raises ValueError if it takes none."""
    name = cache_name(forward)
    if name is None:
        raise ValueError(f"{forward.__qualname__} takes no cache")
    return {name: cache}


def given_cache(arguments: Mapping[str, Any]) -> Any:
    """Returns the cache among the arguments of a call, under any of its names, or None.

    Raises:
        ValueError: there are two.
    """
    given = {name: arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None}
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are one argument under two names; give one of them")
    return next(iter(given.values()), None)


def returned_cache(output: Any) -> Any:
    """Returns the cache in a model's output, or None."""
    fields = type(output).__dataclass_fields__
    return next((getattr(output, name) for name in CACHE_NAMES if name in fields), None)


def refuse_unknown(who: str, arguments: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """Raises TypeError for an argument that is given, not None, and not understood.

    Args:
        who: the function that was called, for the message.
        arguments: those that its signature does not name.
        known: names that are understood all the same.
    """
    strange = sorted(name for name, value in arguments.items() if value is not None and name not in known)
    if strange:
        raise TypeError(f"{who} does not understand {', '.join(strange)}; leave it out")
