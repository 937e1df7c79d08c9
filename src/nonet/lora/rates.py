"""LoRA+: the second factor learns faster than the first."""

from __future__ import annotations

from typing import Any

from torch import nn

from nonet.lora.layer import carriers
from nonet.shapes import check_positive


def learning_rate_groups(
    model: nn.Module, lr: float, ratio: float = 16.0, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    r"""Returns parameter groups for an optimizer in which B learns at ``ratio`` times the rate of A.

    .. math:: \eta_B = \lambda\, \eta_A

    B is the factor that starts at zero. Factors of embeddings, of which it is A that does, magnitudes, biases
    and modules trained in full learn at ``lr``.

    Args:
        model: a model whose selected adapter is to be trained.
        lr: the rate of A, :math:`\eta_A`.
        ratio: :math:`\lambda`; 1 is plain LoRA.
        weight_decay: for matrices; vectors have none.

    Raises:
        ValueError: a rate is not above zero, or nothing in the model is trained.

    Source: Hayou et al. 2024 (2402.12354), section 4.
    """
    check_positive(lr=lr, ratio=ratio)
    fast = {
        id(factors.b)
        for _, module in carriers(model)
        if not module.lora_embedding
        for factors in module.lora.values()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            rate = lr * ratio if id(parameter) in fast else lr
            groups.setdefault((rate, weight_decay if parameter.dim() > 1 else 0.0), []).append(parameter)
    if not groups:
        raise ValueError(f"nothing in {type(model).__name__} is trained; select an adapter first")
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]
