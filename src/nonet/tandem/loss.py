"""Cross-entropy behind a large head, without ever holding the logits of all places."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

NUMBERS = 1 << 24  # logits that are held at once


class Head(NamedTuple):
    """Hidden states ``(N, E)`` and the matrix ``(V, E)`` that makes logits of them."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, model: Any, hidden: Tensor) -> Head:
        """Returns the head of a causal model, over these states."""
        head: nn.Module = model.get_output_embeddings()
        return cls(hidden, head.weight, getattr(head, "bias", None))  # type: ignore[arg-type]

    def log_probabilities(self, rows: slice) -> Tensor:
        """Returns ``log softmax`` of the logits of some rows, in float32 or better."""
        logits = linear(self.hidden[rows], self.weight, self.bias)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def slices(self) -> list[slice]:
        """Returns the rows in pieces small enough to hold their logits."""
        size = max(1, NUMBERS // self.weight.shape[0])
        return [slice(i, i + size) for i in range(0, len(self.hidden), size)]


def head_loss(head: Head, labels: Tensor, teacher: Head | None = None, balance: float = 1.0) -> Tensor:
    r"""Returns the mean cross-entropy to labels, and to a teacher's distribution, in nats.

    .. math:: -\frac{1}{N} \sum_i \lambda \log q_i(y_i) + (1 - \lambda) \sum_x p_i(x) \log q_i(x)

    The gradient is made with the loss, piece by piece, so that no logits are kept or computed twice.

    Args:
        head: makes :math:`q` of N places.
        labels: y ``(N,)``.
        teacher: makes :math:`p`; it gets no gradient. None leaves :math:`\lambda = 1`.
        balance: :math:`\lambda`.

    Complexity: ``6 N V E`` operations with a gradient, ``2 N V E`` more for a teacher of equal width;
    ``2^24`` logits at once. Source: Tandem transformers (2402.08644), Tandem-CE and Tandem-Distil.
    """
    return _HeadLoss.apply(*head, labels, teacher, balance if teacher is not None else 1.0)


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        teacher: Head | None,
        balance: float,
    ) -> Tensor:
        head, wanted = Head(hidden, weight, bias), ctx.needs_input_grad[:3]
        grads = [
            torch.zeros_like(t) if want and t is not None else None
            for t, want in zip(head, wanted, strict=True)
        ]
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        share = 1.0 / max(1, len(labels))
        for rows in head.slices():
            log_q, y = head.log_probabilities(rows), labels[rows, None]
            total -= balance * share * log_q.gather(1, y).sum()
            p = None if teacher is None else teacher.log_probabilities(rows).exp_()
            if p is not None:
                total -= (1.0 - balance) * share * (p * log_q).sum()
            if any(wanted):  # of the logits: q less what it should be
                d = log_q.exp_().mul_(share)
                d.scatter_add_(1, y, torch.full_like(d[:, :1], -balance * share))
                if p is not None:
                    d.sub_(p, alpha=(1.0 - balance) * share)
                _add(grads, head, rows, d.to(weight.dtype))
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        made = (None if g is None else g * grad.to(g.dtype) for g in ctx.saved_tensors)
        return *made, None, None, None


def _add(grads: list[Tensor | None], head: Head, rows: slice, d: Tensor) -> None:
    """Adds the gradients of states, matrix and bias that belong to gradients ``d`` of some rows' logits."""
    hidden, weight, bias = grads
    if hidden is not None:
        hidden[rows] = d @ head.weight
    if weight is not None:
        weight += d.mT @ head.hidden[rows]
    if bias is not None:
        bias += d.sum(0)
