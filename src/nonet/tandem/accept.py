r"""Which drafted tokens stand, and which token comes behind them: pure functions of two distributions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from nonet.shapes import Tensors, check_number, check_whole

_GREEDY = Tensors("V", draft="n: whole", scores="n+1 V: float")
_SAMPLED = Tensors("V", draft="n: whole", p="n+1 V: float", q="n V: float")


def accept_greedy(draft: Int[Tensor, " n"], scores: Float[Tensor, "n+1 V"]) -> tuple[Tensor, Tensor]:
    r"""Returns how many drafted tokens are the target's likeliest, and its token behind them.

    .. math:: a = \max \{k : x_i = \arg\max p_i \ \forall i \le k\}, \quad x = \arg\max p_{a+1}

    Args:
        draft: tokens x ``(n,)``; n may be 0.
        scores: the target's scores of each drafted place and of the one behind.

    Returns:
        a ``(1,)`` and x ``(1,)``.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: a dtype or device is wrong, or there is not one row of scores more than drafted tokens.

    Complexity: ``(n + 1) V`` comparisons. Source: Leviathan et al. 2023 (2211.17192), at temperature zero.
    """
    _GREEDY.check(draft, scores)
    best = scores.argmax(-1)
    count = (draft == best[:-1]).long().cumprod(0).sum(0, keepdim=True)
    return count, best.index_select(0, count)


def accept_sampled(
    draft: Int[Tensor, " n"],
    p: Float[Tensor, "n+1 V"],
    q: Float[Tensor, "n V"],
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Returns how many drafted tokens are accepted, and a sample behind them, so that all follow p.

    Token i is accepted with probability :math:`\min(1, p_i(x_i) / q_i(x_i))`. In place of the first
    that is not stands a sample of

    .. math:: \frac{\max(0, p_i - q_i)}{\sum \max(0, p_i - q_i)}

    and behind n accepted tokens one of :math:`p_{n+1}`.

    Args:
        draft: tokens x ``(n,)``, each sampled from its row of ``q``; n may be 0.
        p: the target's probabilities of each drafted place and of the one behind.
        q: the draft's, those that it sampled from.
        generator: of random numbers.

    Returns:
        The count ``(1,)`` and the token behind ``(1,)``.

    Raises:
        TypeError: an argument is no tensor.
        ValueError: shapes, dtypes or devices do not fit.

    Complexity: ``O(n V)``. Source: Leviathan et al. 2023 (2211.17192), algorithm 1; Chen et al. 2023
    (2302.01318), algorithm 2.
    """
    _SAMPLED.check(draft, p, q)
    chosen = draft[:, None]
    chance = torch.rand(chosen.shape, generator=generator, device=p.device, dtype=p.dtype)
    # Not a quotient, which is no number where both are zero; and below, since chance may be zero.
    kept = chance * q.gather(1, chosen) < p.gather(1, chosen)
    count = kept[:, 0].long().cumprod(0).sum(0, keepdim=True)
    behind = p.index_select(0, count)
    rest = (behind - torch.cat([q, torch.zeros_like(p[:1])]).index_select(0, count)).clamp(min=0)
    # Where p and q agree to the last bit nothing is left; then a rejection was rounding, and p is right.
    rest = torch.where(rest.sum() > 0, rest, behind)
    return count, torch.multinomial(rest, 1, generator=generator)[:, 0]


def expected_tokens(acceptance: float, block: int) -> float:
    r"""Returns the mean tokens of a round, :math:`(1 - \alpha^{\gamma+1}) / (1 - \alpha)`.

    Args:
        acceptance: :math:`\alpha`, the chance of each drafted token, independent of the others.
        block: :math:`\gamma`, the drafted tokens of a round.

    Raises:
        ValueError: ``acceptance`` is no probability or ``block`` is negative.

    Source: Leviathan et al. 2023 (2211.17192), equation 1.
    """
    check_number(acceptance=acceptance)
    check_whole(0, block=block)
    if not 0.0 <= acceptance <= 1.0:
        raise ValueError(f"acceptance must lie between 0 and 1; got {acceptance!r}")
    return float(sum(acceptance**i for i in range(block + 1)))
