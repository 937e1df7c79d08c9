"""Where the real tokens of a padded batch lie, and which batches cannot be served."""

from __future__ import annotations

import torch
from torch import Tensor

from nonet.slots import Lengths


def padding_bounds(
    mask: Tensor | None, past: int, new: int, more: bool = False
) -> tuple[Tensor | None, Tensor | None]:
    """Returns the first real place and one past the last of every row, None where no row is padded.

    Args:
        mask: ``(B, past + new)`` with ones on real tokens, or None.
        past: tokens that the cache holds.
        new: tokens of this call.
        more: later calls may bring more tokens, so a row may consist of padding on its left so far.

    Raises:
        ValueError: the mask is not two-dimensional, has another length, or a row's ones are not contiguous.
    """
    if mask is None:
        return None, None
    if mask.dim() != 2:
        raise ValueError(
            f"attention_mask must be (batch, length) with ones on real tokens; got {tuple(mask.shape)}"
        )
    if mask.shape[1] != past + new:
        raise ValueError(
            f"attention_mask must cover the {past} cached and {new} new tokens; got {mask.shape[1]} columns"
        )
    real = mask.bool()
    if bool(real.all()):
        return None, None
    length, count = mask.shape[1], real.sum(1)
    if not more and not bool(count.all()):
        row = int((count == 0).nonzero()[0])
        raise ValueError(f"attention_mask has no ones in row {row}: it holds no token; leave the row out")
    starts = torch.where(count > 0, real.int().argmax(1), length)
    ends = length - real.flip(1).int().argmax(1)
    if not torch.equal((ends - starts)[count > 0], count[count > 0]):
        raise ValueError(
            "attention_mask has a row with zeros between ones; pad each row at one end "
            "(on the left for generation)"
        )
    return (starts if bool(starts.any()) else None), (ends if bool((ends < length).any()) else None)


def real_lengths(starts: Tensor | None, ends: Tensor | None, seen: int) -> Lengths:
    """Returns how many real tokens there are: one number, or one a row where rows are padded."""
    if starts is None and ends is None:
        return seen
    return (seen if ends is None else ends) - (0 if starts is None else starts)


def check_places(places: Tensor, new: int, starts: Tensor | None, ends: Tensor | None, past: int) -> None:
    """Checks positions that a caller names, which must rise from each real token of a row to the next.

    Args:
        places: ``(B or 1, new)``.
        new: tokens of this call.
        starts: the first real place of each row ``(B,)``, counted over the cached tokens too, or None.
        ends: one past the last, or None.
        past: tokens that the cache holds.

    Raises:
        ValueError: the shape is wrong, or positions restart inside a row: such a row holds several sequences,
            which would see each other.
    """
    if places.dim() != 2 or places.shape[1] != new:
        raise ValueError(f"position_ids must be (batch, {new}); got {tuple(places.shape)}")
    rises = places.diff(dim=1) > 0
    column = torch.arange(past, past + new - 1, device=places.device)  # of the first of two neighbours
    if starts is not None:
        rises = rises | (column < starts.to(places.device)[:, None])
    if ends is not None:
        rises = rises | (column + 1 >= ends.to(places.device)[:, None])
    if not bool(rises.all()):
        raise ValueError(
            "position_ids restart inside a row, so several sequences are packed into it, and this model "
            "would mix them; give each sequence a row of its own, padded with an attention_mask"
        )
