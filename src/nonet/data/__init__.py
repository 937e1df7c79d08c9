"""Text to train on, its tokens in memory-mapped files, and the synthetic tasks of the papers."""

from nonet._lazy import lazy_names

_HOMES = {
    "TASKS": "nonet.data.tasks",
    "AssociativeRecall": "nonet.data.tasks",
    "Corpus": "nonet.data.corpus",
    "Duplication": "nonet.data.tasks",
    "EncodedCorpus": "nonet.data.tokens",
    "Example": "nonet.data.examples",
    "Examples": "nonet.data.examples",
    "InductionHeads": "nonet.data.tasks",
    "SelectiveCopying": "nonet.data.tasks",
    "Task": "nonet.data.tasks",
    "TaskDataset": "nonet.data.tasks",
    "Windows": "nonet.data.windows",
    "accuracy": "nonet.data.tasks",
    "byte_tokenizer": "nonet.data.tokenizer",
    "encode_corpus": "nonet.data.tokens",
    "library_topics": "nonet.data.topics",
    "load_corpus": "nonet.data.corpus",
    "load_tokenizer": "nonet.data.tokenizer",
    "make_task": "nonet.data.tasks",
    "read_examples": "nonet.data.examples",
    "training_windows": "nonet.data.windows",
    "validation_windows": "nonet.data.windows",
}
__all__ = list(_HOMES)
__getattr__, __dir__ = lazy_names(__name__, _HOMES)
