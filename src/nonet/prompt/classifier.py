"""An ensemble's answers, taught to one classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nonet.prompt.fitting import fit
from nonet.shapes import check_floating, check_positive, check_shape


def distil(
    classifier: Any,
    tokenizer: Any,
    texts: Sequence[str],
    soft_labels: Tensor,
    *,
    temperature: float = 2.0,
    max_length: int = 256,
    steps: int = 250,
    learning_rate: float = 1e-5,
    batch: int = 16,
    seed: int = 0,
) -> float:
    r"""Trains a sequence classifier to give soft labels, and returns the mean loss.

    .. math:: L = T^2 \, \mathrm{KL}\big(p \,\|\, \mathrm{softmax}(z / T)\big)

    where p is a text's soft label and z the classifier's logits. With one-hot labels and ``temperature=1`` it
    is plain fine-tuning of a classification head.

    Args:
        classifier: a ``...ForSequenceClassification`` of Transformers; its parameters that require a gradient
            are trained in place, and it is left in evaluation mode.
        tokenizer: the classifier's tokenizer, with a padding token.
        texts: n texts, as they are, in no pattern.
        soft_labels: probabilities ``(n, L)``, such as :meth:`nonet.prompt.Ensemble.soft_labels` returns.
        temperature: T, that with which the soft labels were made.
        max_length: tokens of a text; a longer one is cut.
        steps: updates.
        learning_rate: the first, and highest; it falls linearly to zero.
        batch: texts a step.
        seed: of the order and of dropout.

    Raises:
        ValueError: the soft labels do not fit the texts, the classifier, or are no probabilities.

    Source: Schick and Schuetze 2020 (2001.07676), section 3.3; the loss is that of the authors' code.
    """
    sizes = {"n": len(texts), "L": classifier.config.num_labels}
    check_shape("soft_labels", soft_labels, "n L", sizes)
    check_floating(soft_labels=soft_labels)
    check_positive(temperature=temperature, max_length=max_length)
    if soft_labels.min() < 0 or (soft_labels.sum(-1) - 1).abs().max() > 1e-3:
        raise ValueError("soft_labels must be probabilities, each row of sum one")

    def collate(items: Sequence[tuple[str, Tensor]]) -> dict[str, Any]:
        coded = tokenizer(
            [text for text, _ in items],
            padding=True,
            padding_side="right",  # so that places are counted from the first real token in every model
            truncation=True,
            max_length=max_length,
            return_tensors="pt",
        )
        inputs = {name: coded[name] for name in ("input_ids", "attention_mask")}
        return {"inputs": inputs, "target": torch.stack([target for _, target in items])}

    items = list(zip(texts, soft_labels.detach().cpu(), strict=True))
    student = _Student(classifier, temperature)
    return fit(student, items, collate, steps=steps, learning_rate=learning_rate, batch=batch, seed=seed)


class _Student(nn.Module):
    def __init__(self, classifier: nn.Module, temperature: float) -> None:
        super().__init__()
        self.classifier, self.temperature = classifier, temperature

    def forward(self, inputs: Mapping[str, Tensor], target: Tensor) -> dict[str, Tensor]:
        logits = self.classifier(**inputs).logits
        log_q = F.log_softmax(logits / self.temperature, dim=-1)
        loss = F.kl_div(log_q, target.to(log_q), reduction="batchmean") * self.temperature**2
        return {"loss": loss}
