"""nonet inside other people's Transformers models."""

from nonet._lazy import lazy_names

_HOMES = {
    "Report": "nonet.hf.swap",
    "accelerate": "nonet.hf.swap",
    "load_adapter": "nonet.hf.adapters",
    "load_pretrained": "nonet.hf.pretrained",
    "restore": "nonet.hf.swap",
    "save_adapter": "nonet.hf.adapters",
}
__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
