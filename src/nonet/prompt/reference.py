"""PET as the paper defines it: one text at a time, no padding, every logit. The oracle of the batched one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nonet.prompt.pattern import Example, Pattern
from nonet.prompt.verbalizer import Verbalizer


def label_scores(
    model: Any,
    tokenizer: Any,
    pattern: Pattern,
    verbalizer: Verbalizer,
    example: Example,
    *,
    causal: bool,
    max_length: int = 256,
) -> Tensor:
    r"""Returns the score of each label, ``(L,)``: the mean log-probability of its words in the blank.

    .. math:: s(l \mid x) = \frac{1}{|v(l)|} \sum_{w \in v(l)} \sum_j \log M(w_j \mid P(x))

    Source: Schick and Schuetze 2020 (2001.07676), section 3.1; for several tokens or words the
    sum and the mean are our choice.
    """
    coded = verbalizer.encode(tokenizer, pattern.lead)
    room = max(len(word) for words in coded for word in words) - causal
    before, after = pattern.encode(tokenizer, example, room=room, max_length=max_length)
    scores = []
    for words in coded:
        score = torch.zeros((), dtype=torch.float64)
        for word in words:
            row = [*before, *word] if causal else [*before, *[tokenizer.mask_token_id] * len(word), *after]
            log_p = model(torch.tensor([row])).logits[0].log_softmax(-1)
            for j, token in enumerate(word):
                score = score.to(log_p) + log_p[len(before) + j - causal, token]
        scores.append(score / len(words))
    return torch.stack(scores)


def label_words_loss(scores: Tensor, label: int) -> Tensor:
    r"""Returns :math:`-\log q(l \mid x)`, where q is the softmax of the scores over labels alone."""
    return -F.log_softmax(scores, dim=-1)[label]
