"""Training a PET, or anything that returns a loss, by Transformers' Trainer."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from transformers import PrinterCallback, Trainer, TrainingArguments

from nonet.prompt.pattern import Example
from nonet.prompt.pet import PET
from nonet.shapes import check_positive


def train_pet(
    pet: PET,
    examples: Sequence[Example],
    labels: Sequence[str],
    unlabelled: Sequence[Example] = (),
    *,
    steps: int = 250,
    learning_rate: float = 1e-5,
    batch: int = 16,
    seed: int = 0,
) -> float:
    """Trains the parameters of the PET's model that require a gradient, and returns the mean loss.

    AdamW with a rate that falls linearly to zero. The examples are seen again and again, in a new order each
    time. Each step takes as many unlabelled texts as examples, if there are any and ``pet.alpha`` is not 0.

    Args:
        pet: what is trained, in place; it is left in evaluation mode.
        examples: texts, or mappings from the fields of the pattern to texts.
        labels: the label of each example.
        unlabelled: texts for the language model's loss.
        steps: updates. Learning rate and batch are the paper's by default, the number of steps is ours.
        learning_rate: the first, and highest; 1e-5 to 1e-4 suits a model that is trained whole, 1e-4 to 1e-3
            an adapter.
        batch: examples a step.
        seed: of the order, dropout, masks and choice of unlabelled texts.

    Raises:
        ValueError: a label is not known, a number is not above zero, or no parameter requires a gradient.

    Source: Schick and Schuetze 2020 (2001.07676), section 3 and its training details.
    """
    pet.index(examples, labels)  # refuses what is wrong before anything is trained
    chance = random.Random(seed)

    def collate(items: Sequence[tuple[Example, str]]) -> dict[str, Any]:
        return {
            "examples": [example for example, _ in items],
            "labels": [label for _, label in items],
            "unlabelled": chance.choices(unlabelled, k=len(items)) if unlabelled else [],
        }

    items = list(zip(examples, labels, strict=True))
    return fit(pet, items, collate, steps=steps, learning_rate=learning_rate, batch=batch, seed=seed)


def fit(
    module: nn.Module,
    items: Sequence[Any],
    collate: Callable[[Sequence[Any]], dict[str, Any]],
    *,
    steps: int,
    learning_rate: float,
    batch: int,
    seed: int,
) -> float:
    """Trains a module whose ``forward(**collate(items))`` gives ``{"loss": ...}``; returns the mean loss."""
    check_positive(steps=steps, learning_rate=learning_rate, batch=batch)
    trained = next((p for p in module.parameters() if p.requires_grad), None)
    if trained is None:
        raise ValueError("no parameter of the model requires a gradient, so there is nothing to train")
    settings = TrainingArguments(
        output_dir=".",  # Trainer makes this folder, and writes nothing there
        max_steps=steps,
        per_device_train_batch_size=batch,
        learning_rate=learning_rate,
        weight_decay=0.01,
        seed=seed,
        data_seed=seed,
        use_cpu=trained.device.type == "cpu",
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=module, args=settings, train_dataset=items, data_collator=collate)
    trainer.remove_callback(PrinterCallback)  # it prints dictionaries
    mean: float = trainer.train().training_loss
    module.eval()
    return mean
