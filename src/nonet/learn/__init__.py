"""What chapters are made with: pictures, sources, checks, tables, play; and where chapters are."""

from nonet._lazy import lazy_names

_HOMES = {
    "INK": "nonet.learn.look",
    "LOOKS": "nonet.learn.look",
    "Lab": "nonet.ledger",
    "canvas": "nonet.learn.look",
    "check": "nonet.learn.checks",
    "check_op": "nonet.learn.checks",
    "draw_plot": "nonet.learn.look",
    "play": "nonet.learn.page",
    "show": "nonet.learn.page",
    "show_claims": "nonet.learn.page",
    "show_implementations": "nonet.learn.page",
    "show_source": "nonet.learn.page",
    "show_table": "nonet.learn.page",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
