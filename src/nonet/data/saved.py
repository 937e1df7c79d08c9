"""Text out of a dataset that ``Dataset.save_to_disk`` wrote; needs the package ``datasets``."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nonet.data.split import PART, SPLITS
from nonet.extras import pip_install


@dataclass(frozen=True)
class Rows:
    """Documents that are one column of a dataset."""

    dataset: Any
    column: str

    def __iter__(self) -> Iterator[bytes]:
        for batch in self.dataset.select_columns([self.column]).iter(batch_size=1000):
            for text in batch[self.column]:
                yield (text or "").encode()


def is_saved_dataset(path: Path) -> bool:
    """Returns whether the folder holds what ``save_to_disk`` writes."""
    one = all((path / name).is_file() for name in ("dataset_info.json", "state.json"))
    return one or (path / "dataset_dict.json").is_file()


def saved_dataset(path: Path) -> dict[str, Rows]:
    """Returns the parts of a saved dataset; those that it lacks are the last rows of ``train``."""
    try:
        from datasets import Dataset, load_from_disk
    except ImportError as error:
        raise ImportError(f"{path} is a saved dataset; to read it: {pip_install('datasets')}") from error
    loaded = load_from_disk(str(path))
    parts = {"train": loaded} if isinstance(loaded, Dataset) else dict(loaded)
    if "train" not in parts:
        raise ValueError(f"{path} has the parts {', '.join(parts)}; save it with one named train")
    taken = max(1, len(parts["train"]) // PART)
    for split in ("test", "validation"):
        if split not in parts:
            train = parts["train"]
            rest = max(0, len(train) - taken)
            parts["train"], parts[split] = train.select(range(rest)), train.select(range(rest, len(train)))
    return {split: Rows(parts[split], _text_column(path, parts[split])) for split in SPLITS}


def _text_column(path: Path, dataset: Any) -> str:
    strings = [
        name
        for name, feature in dataset.features.items()
        if getattr(feature, "dtype", None) in ("string", "large_string")
    ]
    if "text" in strings:
        return "text"
    if len(strings) != 1:
        found = ", ".join(strings) or "none"
        raise ValueError(f"{path} needs a column named text, or one column of strings; it has {found}")
    return strings[0]
