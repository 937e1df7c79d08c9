"""Helpers that ship with the package: the error budget, input factories, and planted faults."""

from nonet._lazy import lazy_names

_HOMES = {
    "Case": "nonet.testing.case",
    "assert_within_budget": "nonet.testing.budget",
    "assert_within_rounding": "nonet.testing.rounding",
    "cases": "nonet.testing.case",
    "rounded": "nonet.testing.rounding",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
