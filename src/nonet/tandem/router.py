"""The router: how long a block should be, guessed from the draft's own distribution."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, relu
from transformers.modeling_outputs import CausalLMOutput

from nonet.shapes import check_positive
from nonet.tandem.loss import Head

if TYPE_CHECKING:
    from nonet.tandem.layer import Tandem


class Router(nn.Module):
    r"""Guesses how far the secondary's distribution is from the primary's, with two layers.

    .. math:: \hat d = \sigma(w_2^T \mathrm{relu}(W_1 f + b_1) + b_2), \quad
              f = [H(q), q_{(1)}, \dots, q_{(k)}, e_{(1)}, \dots, e_{(k)}]

    with the entropy of q, its k largest probabilities, and the embeddings of those tokens. Its target is the
    total variation distance :math:`d = \frac{1}{2} \sum |p - q|`; a drafted token is accepted with
    probability 1 - d. So a block goes on while :math:`1 - \hat d \ge \tau`.

    Args:
        width: of the secondary's embeddings.
        top: k.
        hidden: width of the layer between.
        threshold: :math:`\tau`.
        seed: of first values.

    Source: Tandem transformers (2402.08644), adaptive block length. The paper gives neither k, nor the
    width between, nor the side of the threshold 0.8.
    """

    def __init__(
        self, width: int, top: int = 4, hidden: int = 64, threshold: float = 0.8, seed: int = 0
    ) -> None:
        super().__init__()
        check_positive(width=width, top=top, hidden=hidden)
        if not 0.0 < threshold < 1.0:
            raise ValueError(f"threshold must lie between 0 and 1; got {threshold!r}")
        self.options = {"width": width, "top": top, "hidden": hidden, "threshold": threshold, "seed": seed}
        self.top, self.threshold = top, threshold
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = nn.Linear(1 + top + top * width, hidden)
            self.outer = nn.Linear(hidden, 1)

    def forward(self, q: Tensor, embedding: Tensor) -> Tensor:
        r"""Returns the logit of :math:`\hat d` ``(N,)`` for distributions ``q`` (N, V).

        Args:
            q: the secondary's probabilities.
            embedding: of its tokens, ``(V, E)``.
        """
        entropy = torch.special.entr(q).sum(-1, keepdim=True)
        largest, tokens = q.topk(self.top, dim=-1)
        features = torch.cat([entropy, largest, embedding[tokens].flatten(1).to(q.dtype)], dim=-1)
        return self.outer(relu(self.inner(features.to(self.inner.weight.dtype))))[:, 0]

    def stops(self, scores: Tensor, embedding: Tensor) -> bool:
        """Returns whether a block should end behind a token drawn from ``scores`` (1, V)."""
        distance = self(scores.float().softmax(-1), embedding).sigmoid()
        return bool(1.0 - distance < self.threshold)


class RouterTraining(nn.Module):
    """Trains a tandem's router and nothing else: ``forward`` returns its loss, as Transformers' Trainer asks.

    Args:
        tandem: has a ``router``.
        block: tokens of a block, best as long as generation may make them.

    Raises:
        ValueError: the tandem has no router, or ``block`` is not above zero.
    """

    def __init__(self, tandem: Tandem, block: int) -> None:
        super().__init__()
        if tandem.router is None:
            raise ValueError("tandem.router is None; set it to a Router of the secondary's width first")
        check_positive(block=block)
        self.tandem, self.block = tandem, block

    def train(self, mode: bool = True) -> RouterTraining:
        """Switches the router's mode; both models stay as they generate."""
        super().train(mode)
        self.tandem.eval()
        self.tandem.router.train(mode)  # type: ignore[union-attr]
        return self

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> CausalLMOutput:
        r"""Returns the mean cross-entropy of the guess :math:`\hat d` to the distance d of each place.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``, zero on padding.
            labels: ``(B, T)``, shifted inside; places of -100 are not scored.
        """
        tandem = self.tandem
        if labels is None:
            labels = input_ids if attention_mask is None else input_ids.masked_fill(attention_mask == 0, -100)
        with torch.no_grad():
            states, known = tandem.hidden_states(input_ids, attention_mask, self.block)
            scored = labels[:, 1:] >= 0
            heads = (
                Head.of(tandem.secondary, states[:, :-1][scored]),
                Head.of(tandem.primary, known[:, :-1][scored]),
            )
        embedding = tandem.secondary.get_input_embeddings().weight.detach()
        loss = torch.zeros((), device=input_ids.device)
        for rows in heads[0].slices():
            with torch.no_grad():
                q, p = (h.log_probabilities(rows).exp_() for h in heads)
                distance = 0.5 * (p - q).abs().sum(-1)
            guess = tandem.router(q, embedding)  # type: ignore[misc]
            loss = loss + binary_cross_entropy_with_logits(guess, distance.to(guess.dtype), reduction="sum")
        return CausalLMOutput(loss=loss / max(1, int(scored.sum())))
