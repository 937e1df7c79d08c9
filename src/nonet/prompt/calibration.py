"""Contextual calibration: what the model says of a text without content is taken off its answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from nonet.prompt.pet import PET


def calibrate(pet: PET, contents: Sequence[str] | None = None) -> PET:
    r"""Returns a PET of the same model that favours no label on a text without content.

    .. math:: q(l \mid x) \propto p(l \mid x) / p_{cf}(l)

    where :math:`p_{cf}` is the mean of p over the texts in ``contents``. The paper writes
    :math:`\mathrm{softmax}(W p + b)` with :math:`W = \mathrm{diag}(p_{cf})^{-1}` and b = 0; here the products
    are divided by their sum, which orders labels alike and is a constant added to each label's score.

    Args:
        pet: what is calibrated; it is left as it was.
        contents: texts that say nothing, put into every field; None for the paper's three: ``"N/A"``, the
            tokenizer's mask token (``"[MASK]"`` where it has none) and the empty text.

    Raises:
        ValueError: ``contents`` is empty.

    Complexity: one forward pass over ``contents``.
    Source: Zhao et al. 2021 (2102.09690), section 5.
    """
    if contents is None:
        contents = ("N/A", getattr(pet.tokenizer, "mask_token", None) or "[MASK]", "")
    log_p = pet.scores([dict.fromkeys(pet.pattern.fields, text) for text in contents]).log_softmax(-1)
    offset = math.log(len(contents)) - log_p.logsumexp(0)
    return PET(
        pet.model,
        pet.tokenizer,
        pet.pattern,
        pet.verbalizer,
        alpha=pet.alpha,
        max_length=pet.max_length,
        offset=pet.offset.to(offset) + offset,
    )
