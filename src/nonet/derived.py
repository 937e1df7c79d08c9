"""Classes made at run time whose objects can be copied, pickled and sent to another process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar


class Derived:
    """First base of a class that a function makes from another class.

    Pickle finds a class by its name in its module, and a class made at run time is not there. So an object of
    one is stored as the function and the class it was given, and its class is made again when it is read.

    Attributes:
        derived_by: a function of a module; for one argument it always returns the same class.
        derived_from: the class that it was given.
    """

    derived_by: ClassVar[Callable[[Any], type]]
    derived_from: ClassVar[type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain: Any = super().__reduce_ex__(max(protocol, 2))
        new, given, *state = plain
        if new.__name__ != "__newobj__":  # the class it was made from has a way of its own
            return plain
        kind, *arguments = given
        return (_renewed, (kind.derived_by, kind.derived_from, *arguments), *state)


def _renewed(make: Callable[[Any], type], own: type, *arguments: Any) -> Any:
    """Returns an object without a state, which pickle and copy then fill in."""
    kind: Any = make(own)
    return kind.__new__(kind, *arguments)
