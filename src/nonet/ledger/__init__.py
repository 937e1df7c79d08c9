"""The ledger: every paper's claims, put to the test on this machine."""

from nonet._lazy import lazy_names

_HOMES = {
    "Lab": "nonet.ledger.lab",
    "claims": "nonet.ledger.run",
    "newest": "nonet.ledger.rows",
    "origin": "nonet.ledger.rows",
    "read_ledger": "nonet.ledger.rows",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
