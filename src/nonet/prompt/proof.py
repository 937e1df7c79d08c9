"""Whether a model reads what a prompt puts before its tokens, found out on a few tokens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

_PROBED = 4  # tokens
_FAILURES = (RuntimeError, TypeError, LookupError, AttributeError)  # of a model's own code


def probe(model: PreTrainedModel) -> Tensor:
    """Returns a few tokens ``(1, n)`` that have no special meaning to the model."""
    config = model.config.get_text_config()
    special = {value for name, value in config.to_dict().items() if name.endswith("_token_id")}
    plain = [token for token in range(config.vocab_size) if token not in special]
    ids = [plain[i * (len(plain) - 1) // _PROBED] for i in range(_PROBED)]
    return torch.tensor([ids], device=model.device)


@contextmanager
def probing(model: PreTrainedModel, who: str) -> Iterator[None]:
    """Runs a model without gradients and dropout; its failure becomes a ValueError that names ``who``."""
    training = [module for module in model.modules() if module.training]
    try:
        with torch.no_grad():
            model.eval()
            yield
    except _FAILURES as error:
        raise ValueError(f"{who}: the model fails on what stands before its tokens: {error}") from error
    finally:
        for module in training:
            module.training = True


def result(output: Any) -> Tensor:
    """Returns what a model computes: its logits, or its hidden states where it has no head."""
    return output.logits if "logits" in output else output[0]


def same(actual: Tensor, expected: Tensor) -> bool:
    """Whether two tensors differ by no more than the roundings of a model in their dtype."""
    if actual.shape != expected.shape:
        return False
    tolerance = torch.finfo(expected.dtype).eps ** 0.5
    error, scale = (actual - expected).double().norm(), (expected - expected.mean()).double().norm()
    return bool(error <= tolerance * scale)
