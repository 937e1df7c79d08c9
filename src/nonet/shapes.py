"""The letters, and argument checks whose messages name the argument, what was given and what is allowed.

``B`` batch, ``H`` query heads, ``G`` key/value heads, ``T`` query length, ``S`` key length, ``D`` head
width, ``E`` model width, ``C`` channels of a recurrent mixer, ``N`` state size, ``R`` rank, ``V`` vocabulary.
Attention tensors are ``(B, H, T, D)``; recurrences take ``(B, C, T)``. jaxtyping annotations spell the same
letters: ``Float[Tensor, "B H T D"]``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "check_choice",
    "check_floating",
    "check_packing",
    "check_positive",
    "check_shape",
    "divides",
    "freeze_lists",
]


def check_shape(name: str, tensor: Tensor, letters: str, sizes: dict[str, int]) -> None:
    """Checks that ``tensor`` has the shape ``letters`` spell, learning new letters as it goes.

    Args:
        name: the argument's name, for the message.
        tensor: the argument.
        letters: one word an axis, such as ``"B H T D"``; a number stands for itself.
        sizes: letters known so far; letters seen for the first time are added.

    Raises:
        ValueError: an axis is missing, or has another size than its letter has elsewhere.
    """
    axes = letters.split()
    learned: dict[str, int] = {}
    fits = tensor.dim() == len(axes)
    for axis, size in zip(axes, tensor.shape, strict=False):
        want = int(axis) if axis.isdigit() else sizes.get(axis, learned.setdefault(axis, size))
        fits = fits and size == want
    if not fits:  # the message is made only now: operations are called thousands of times a second
        expected = "(" + ", ".join(f"{a}={sizes[a]}" if a in sizes else a for a in axes) + ")"
        raise ValueError(f"{name} must have the shape {expected}; got {tuple(tensor.shape)}")
    sizes.update(learned)


def check_slopes(alibi_slopes: Tensor | None, sizes: dict[str, int]) -> None:
    """Checks that ALiBi's slopes, if given, are one a head or one a row and head."""
    if alibi_slopes is not None:
        check_shape("alibi_slopes", alibi_slopes, "H" if alibi_slopes.dim() == 1 else "B H", sizes)


def check_floating(**tensors: Tensor | None) -> None:
    """Checks that all tensors given are floating, of one dtype and on one device."""
    given = {name: t for name, t in tensors.items() if t is not None}
    first_name, first = next(iter(given.items()))
    for name, tensor in given.items():
        if not tensor.is_floating_point():
            raise ValueError(f"{name} must be of a floating dtype; got {tensor.dtype}")
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"{name} must match {first_name}, which is {first.dtype} on {first.device}; "
                f"got {tensor.dtype} on {tensor.device}"
            )


def check_choice(name: str, value: object, allowed: Collection[object]) -> None:
    """Checks that ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; choose from {', '.join(map(str, allowed))}")


def check_positive(**values: float | None) -> None:
    """Checks that every value that is given (not None) is a finite number above zero."""
    for name, value in values.items():
        if value is not None and not (isinstance(value, (int, float)) and 0 < value < math.inf):
            finite = " and finite" if value == math.inf else ""
            raise ValueError(f"{name} must be above zero{finite}; got {value!r}")


def check_packing(cu_seqlens: Tensor | None, sizes: dict[str, int]) -> str:
    """Checks that ``cu_seqlens``, if given, cuts the one row of T tokens into sequences.

    Args:
        cu_seqlens: ``(n + 1,)``: where each sequence begins, and T.
        sizes: letters known so far, B and T among them; n is added.

    Returns:
        The letter of the first axis of states: ``"n"`` for a packed row, ``"B"`` without packing.

    Raises:
        ValueError: there are more rows than one, or ``cu_seqlens`` has another dtype or shape or does not
            rise from 0 to T at every place.
    """
    if cu_seqlens is None:
        return "B"
    if cu_seqlens.dim() != 1 or cu_seqlens.dtype not in (torch.int32, torch.int64):
        got = f"{tuple(cu_seqlens.shape)} of {cu_seqlens.dtype}"
        raise ValueError(f"cu_seqlens must have the shape (n + 1,) and be of int32 or int64; got {got}")
    if sizes["B"] != 1:
        raise ValueError(f"cu_seqlens packs sequences into one row, B=1; got B={sizes['B']}")
    # A compiler traces without values: these would end its graph.
    if not torch.compiler.is_compiling():
        ends, total = cu_seqlens.tolist(), sizes["T"]
        if ends[:1] != [0] or ends[-1] != total or any(a >= b for a, b in pairwise(ends)):
            raise ValueError(f"cu_seqlens must rise at every place, from 0 to T={total}; got {ends}")
    sizes["n"] = cu_seqlens.shape[0] - 1
    return "n"


def divides(name: str, value: int, of_name: str, of: int) -> int:
    """Returns ``of // value`` after checking that it leaves no rest."""
    if value < 1 or of % value:
        raise ValueError(f"{name}={value} must divide {of_name}={of}")
    return of // value


def freeze_lists(options: Any) -> None:
    """Turns every list in the fields of a frozen dataclass, and inside of them, into a tuple.

    So a user may type either, JSON, which has lists only, gives back what was written, and the options can be
    hashed. To be called first in ``__post_init__``.
    """
    for field in dataclasses.fields(options):
        object.__setattr__(options, field.name, _frozen(getattr(options, field.name)))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if type(value) in (list, tuple) else value


def lengths_to_mask(lengths: Tensor, size: int) -> Tensor:
    """Returns the (B, size) mask that is true on the first ``lengths[b]`` places of each row."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def one_by_one(
    run: Callable[..., tuple[Tensor, Tensor]],
    cu_seqlens: Tensor,
    initial_state: Tensor | None,
    **timed: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Returns the outputs (1, C, T) and last states (n, ...) of sequences that are run one after the other.

    Args:
        run: returns the output and the last state of one sequence.
        cu_seqlens: ``(n + 1,)``: where each sequence begins, and T.
        initial_state: one for each sequence ``(n, ...)``, or None.
        timed: arguments of ``run`` whose last axis is time.
    """
    results = []
    for k, (start, end) in enumerate(pairwise(cu_seqlens.tolist())):
        state = None if initial_state is None else initial_state[k : k + 1]
        alone = {name: None if t is None else t[..., start:end] for name, t in timed.items()}
        results.append(run(**alone, initial_state=state))
    outs, lasts = zip(*results, strict=True)
    return torch.cat(outs, dim=-1), torch.cat(lasts)
