"""One model with slots, which Transformers loads, trains and generates with.

Importing this package makes the architecture known to Transformers' Auto classes and pipelines.
"""

from nonet.model.cache import StateLayer
from nonet.model.config import NonetConfig
from nonet.model.modeling import NonetForCausalLM, NonetForSequenceClassification, NonetModel
from nonet.model.presets import LEARNING_RATES, count_parameters, matched, preset

__all__ = [
    "LEARNING_RATES",
    "NonetConfig",
    "NonetForCausalLM",
    "NonetForSequenceClassification",
    "NonetModel",
    "StateLayer",
    "count_parameters",
    "matched",
    "preset",
]
