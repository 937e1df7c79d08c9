"""nonet inside other people's Transformers models."""

from nonet._lazy import lazy_names

_HOMES = {
    "Report": "nonet.hf.swap",
    "accelerate": "nonet.hf.swap",
    "restore": "nonet.hf.swap",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
