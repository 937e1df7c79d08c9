"""Nine recent methods in transformers, in one model and one comparison.

Importing this package imports nothing heavy; a public name is loaded when it is first used.
"""

from nonet._lazy import lazy_names
from nonet.registry import Method, methods

__version__ = "0.1.0"

_ROOMS = (
    "data",
    "flash",
    "hf",
    "learn",
    "ledger",
    "linformer",
    "lora",
    "mamba",
    "matmulfree",
    "position",
    "prompt",
    "reformer",
    "tandem",
    "testing",
)
_HOMES = {
    **{room: f"nonet.{room}" for room in _ROOMS},
    "NonetConfig": "nonet.model",
    "NonetForCausalLM": "nonet.model",
    "NonetForSequenceClassification": "nonet.model",
    "accelerate": "nonet.hf",
}
__all__ = [
    *_HOMES,
    "Method",
    "__version__",
    "methods",
]
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
