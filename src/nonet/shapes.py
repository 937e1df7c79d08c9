"""The letters, and argument checks whose messages name the argument, what was given and what is allowed.

``B`` batch, ``H`` query heads, ``G`` key/value heads, ``T`` query length, ``S`` key length, ``D`` head
width, ``E`` model width, ``C`` channels of a recurrent mixer, ``N`` state size, ``R`` rank, ``V`` vocabulary.
Attention tensors are ``(B, H, T, D)``; recurrences take ``(B, C, T)``. jaxtyping annotations spell the same
letters: ``Float[Tensor, "B H T D"]``.

Every operation has one :class:`Tensors`, which checks all its tensors together. Numbers in tensors (lengths,
indices) are checked on the CPU only: to read them elsewhere would wait for the device, and a compiler traces
without them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Collection
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

__all__ = [
    "Tensors",
    "check_choice",
    "check_ends",
    "check_flag",
    "check_floating",
    "check_heads",
    "check_number",
    "check_packing",
    "check_positive",
    "check_shape",
    "check_values",
    "check_whole",
    "divides",
    "freeze_lists",
]

_FLOATS = frozenset((torch.float64, torch.float32, torch.bfloat16, torch.float16))
_WHOLE = frozenset((torch.int64, torch.int32))
_BOOL, _BYTE = frozenset((torch.bool,)), frozenset((torch.uint8,))
_DTYPES = {"": _FLOATS, "float": _FLOATS, "whole": _WHOLE, "bool": _BOOL, "byte": _BYTE}
_MOST, _HUGE = 2**31 - 1, 2**63  # sizes are below what 32 bits hold, and numbers below what torch takes
_WORDS = {
    _FLOATS: "float64, float32, bfloat16 or float16",
    _WHOLE: "int32 or int64",
    _BOOL: "bool",
    _BYTE: "uint8",
}


class Tensors:
    """The tensors that an operation takes: their axes, their dtypes, and that all are on one device.

    Args:
        nonzero: letters of axes that must not be empty.
        spelled: for each argument, in the order in which :meth:`check` is given them, its axes and after a
            colon its dtype, such as ``"C N: float"``: any floating one for ``float``, int32 or int64 for
            ``whole``, ``bool``, or uint8 for ``byte``. Without a colon it is floating, and that of the first
            such argument. An axis in brackets may be missing, ``...`` stands for any axes, the same in all
            arguments, and an axis may be a sum, such as ``W-1`` or ``R+2N``. What ends in ``?`` may be None.
    """

    def __init__(self, nonzero: str = "", /, **spelled: str) -> None:
        self._nonzero = nonzero.split()
        self._entries = [_entry(name, text) for name, text in spelled.items()]
        words = {word for entry in self._entries for word in entry.axes}
        self._sums = [(word, *_terms(word)) for word in words if not word.isidentifier()]

    def check(self, *tensors: Tensor | None) -> dict[str, int]:
        """Returns the sizes by letter.

        Raises:
            TypeError: an argument is no tensor.
            ValueError: a shape, dtype or device does not fit the others; the message names the argument.
        """
        sizes: dict[str, Any] = {}
        first: Tensor | None = None
        cpu = dtype = None
        # Operations are called thousands of times a second, and of a small one this is a good part.
        for entry, tensor in zip(self._entries, tensors, strict=True):
            name, axes, plain, dtypes, shared, optional, _ = entry
            if tensor is None and optional:
                continue
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name} must be a tensor; got {type(tensor).__name__}")
            shape: tuple[int, ...] = tensor.shape
            if len(shape) != plain:
                axes, shape = self._aligned(entry, tensors, sizes)
            for letter, size in zip(axes, shape, strict=True):
                if sizes.setdefault(letter, size) != size:
                    self._misfit(entry, tensors)
            given = tensor.dtype
            if given is not dtype or not shared:
                if given not in dtypes:
                    raise ValueError(f"{name} must be of {_WORDS[dtypes]}; got {given}")
                if shared:
                    if dtype is not None:
                        self._mismatch(name, tensors, given)
                    dtype = given
            if first is None:
                first, cpu = tensor, tensor.is_cpu
            elif not (tensor.is_cpu if cpu else tensor.device == first.device):
                self._mismatch(name, tensors, tensor.device)
            if tensor.layout is not torch.strided:
                raise ValueError(f"{name} must be dense, which its to_dense() is; got {tensor.layout}")
        for word, more, terms in self._sums:
            if word in sizes and sizes[word] != more + sum(n * sizes[letter] for letter, n in terms):
                self._misfit(self._first_with(word), tensors)
        for letter in self._nonzero:
            if not sizes[letter]:
                self._misfit(self._first_with(letter), tensors)
        sizes.pop("...", None)
        return sizes

    def _aligned(
        self, entry: _Entry, tensors: tuple[Tensor | None, ...], sizes: dict[str, Any]
    ) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Returns the named axes of a tensor that has fewer or more than are spelled, and their sizes."""
        shape = tuple(self._given(tensors)[entry.name].shape)
        more = len(shape) - len(entry.axes)
        if entry.lead == "..." and more >= 0:
            if sizes.setdefault("...", shape[:more]) == shape[:more]:
                return entry.axes, shape[more:]
        elif entry.lead == "[" and more == -1:
            return entry.axes[1:], shape
        self._misfit(entry, tensors)

    def _first_with(self, letter: str) -> _Entry:
        return next(entry for entry in self._entries if letter in entry.axes)

    def _given(self, tensors: tuple[Tensor | None, ...]) -> dict[str, Any]:
        return dict(zip((entry.name for entry in self._entries), tensors, strict=True))

    def _misfit(self, entry: _Entry, tensors: tuple[Tensor | None, ...]) -> NoReturn:
        """Raises ValueError for a shape, with the sizes that the arguments before have."""
        given, known, free = self._given(tensors), dict[str, int](), ["..."]
        earlier = [e for e in self._entries[: self._entries.index(entry)] if given[e.name] is not None]
        for before in earlier:
            shape = given[before.name].shape
            known |= dict(zip(reversed(before.axes), reversed(shape), strict=False))
            if before.lead == "...":  # the sizes that these axes have there
                free = [str(size) for size in shape[: len(shape) - len(before.axes)]]
        for word, more, terms in self._sums:
            if all(letter in known for letter, _ in terms):
                known[word] = more + sum(n * known[letter] for letter, n in terms)
        for before in earlier:  # a sum that is known only now may have been wrong there
            pairs = zip(reversed(before.axes), reversed(given[before.name].shape), strict=False)
            if any(known[word] != size for word, size in pairs):
                entry = before
                break
        axes = [f"{word}={known[word]}" if word in known else word for word in entry.axes]
        if entry.lead:
            axes[:1] = [f"[{axes[0]}]"] if entry.lead == "[" else [*free, *axes[:1]]
        shape = tuple(given[entry.name].shape)
        full = [letter for letter in self._nonzero if letter in entry.axes]
        least = f", {' and '.join(full)} above zero" if full and 0 in shape else ""
        raise ValueError(f"{entry.name} must have the shape ({', '.join(axes)}){least}; got {shape}")

    def _mismatch(self, name: str, tensors: tuple[Tensor | None, ...], got: object) -> NoReturn:
        """Raises ValueError for a dtype or device that is not that of the first tensor."""
        first, tensor = next((n, t) for n, t in self._given(tensors).items() if t is not None)
        raise ValueError(f"{name} must match {first}, which is {tensor.dtype} on {tensor.device}; got {got}")


class _Entry(NamedTuple):
    """One argument of :class:`Tensors`."""

    name: str
    axes: tuple[str, ...]  # those with a name
    plain: int  # how many a tensor has that has them all and no other
    dtypes: frozenset[torch.dtype]
    shared: bool  # the dtype is that of the first
    optional: bool
    lead: str  # "..." for any axes in front, "[" where the first may be missing


def _entry(name: str, text: str) -> _Entry:
    axes, _, dtype = text.rstrip("?").partition(":")
    words = axes.split()
    lead = "..." if words[:1] == ["..."] else "[" if axes.startswith("[") else ""
    named = tuple(word.strip("[]") for word in words if word != "...")
    plain = -1 if lead == "..." else len(named)
    return _Entry(name, named, plain, _DTYPES[dtype.strip()], not dtype, text.endswith("?"), lead)


def _terms(word: str) -> tuple[int, list[tuple[str, int]]]:
    """Returns the number and the letters, each with its factor, of a sum such as ``R+2N``."""
    parts = re.findall(r"([+-]?\d*)([A-Za-z]\w*)?", word)
    number = sum(int(n) for n, letter in parts if n and not letter)
    return number, [(letter, int(n) if n.strip("+") else 1) for n, letter in parts if letter]


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


def check_heads(sizes: dict[str, int], keys: str = "k", queries: str = "q") -> None:
    """Checks that the G key heads divide the H query heads."""
    heads, shared = sizes["H"], sizes["G"]
    if not shared or heads % shared:
        raise ValueError(f"{keys} must have heads G that divide the H={heads} of {queries}; got G={shared}")


def check_choice(name: str, value: object, allowed: Collection[object]) -> None:
    """Checks that ``value`` is one of ``allowed``, which are strings or None."""
    if not isinstance(value, str | None) or value not in allowed:
        raise ValueError(f"{name}={value!r} is not known; choose from {', '.join(map(str, allowed))}")


def check_positive(**values: float | None) -> None:
    """Checks that every value that is given (not None) is a finite number above zero."""
    for name, value in values.items():
        if value is not None and not (_is_number(value) and 0 < value < _HUGE):
            high = _is_number(value) and value > 0
            most = f" and {'finite' if value == math.inf else 'below 2**63'}" if high else ""
            raise ValueError(f"{name} must be above zero{most}; got {value!r}")


def check_number(**values: float) -> None:
    """Checks that every value is a finite number."""
    for name, value in values.items():
        if not (_is_number(value) and abs(value) < _HUGE):
            raise ValueError(f"{name} must be a finite number, below 2**63 in size; got {value!r}")


def check_whole(least: int = 1, most: int = _MOST, **values: int) -> None:
    """Checks that every value is a whole number from ``least`` to ``most``."""
    for name, value in values.items():
        whole = isinstance(value, int | torch.SymInt) and not isinstance(value, bool)
        if not whole or not least <= value <= most:
            low = "above zero" if least == 1 else f"from {least} up"
            allowed = f"from {least} to {most}" if most < _MOST or (whole and value > most) else low
            raise ValueError(f"{name} must be a whole number {allowed}; got {value!r}")


def check_flag(**values: bool) -> None:
    """Checks that every value is True or False."""
    for name, value in values.items():
        if value is not True and value is not False:
            raise ValueError(f"{name} must be True or False; got {value!r}")


def check_values(low: int, high: int = _HUGE, **tensors: Tensor | None) -> None:
    """Checks that whole numbers in tensors, where given, go from ``low`` to ``high``."""
    for name, tensor in tensors.items():
        if tensor is None or not tensor.is_cpu or not tensor.numel() or torch.compiler.is_compiling():
            continue
        least, most = (int(end) for end in tensor.aminmax())
        if least < low or most > high:
            wrong = least if least < low else most
            end = "up" if high == _HUGE else f"to {high}"
            raise ValueError(f"{name} must hold numbers from {low} {end}; got {wrong}")


def check_ends(name: str, ends: Tensor, letter: str, total: int, *, empty: bool = False) -> None:
    """Checks that ``ends`` says where sequences end, from 0 to ``total``; only if ``empty`` may one be so."""
    if torch.compiler.is_compiling() or ends.is_meta:
        return
    places = ends.tolist()
    if places[:1] != [0] or places[-1] != total or any(b - a < (not empty) for a, b in pairwise(places)):
        rise = "never fall" if empty else "rise at every place"
        raise ValueError(f"{name} must start at 0, end at {letter}={total} and {rise}; got {places}")


def check_packing(cu_seqlens: Tensor | None, initial_state: Tensor | None, sizes: dict[str, int]) -> None:
    """Checks that ``cu_seqlens``, if given, cuts the one row of T tokens into sequences with a state each.

    Args:
        cu_seqlens: ``(ends,)``: where each sequence begins, and T.
        initial_state: ``(n, ...)``: for each sequence or, without packing, for each row.
        sizes: letters known: B, T, and n and ends where given.

    Raises:
        ValueError: there are more rows than one, ``cu_seqlens`` does not rise from 0 to T at every place, or
            there is another number of states.
    """
    rows = sizes["B"]
    if cu_seqlens is not None:
        if rows != 1:
            raise ValueError(f"cu_seqlens packs sequences into one row, B=1; got B={rows}")
        check_ends("cu_seqlens", cu_seqlens, "T", sizes["T"])
        rows = sizes["ends"] - 1
    if initial_state is not None and sizes["n"] != rows:
        got = tuple(initial_state.shape)
        raise ValueError(f"initial_state must hold {rows} states on its first axis; got the shape {got}")


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


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | torch.SymInt | torch.SymFloat) and not isinstance(value, bool)


def lengths_to_mask(lengths: Tensor, size: int) -> Tensor:
    """Returns the (B, size) mask that is true on the first ``lengths[b]`` places of each row."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def zeroed(x: Tensor, where: Tensor) -> Tensor:
    """Returns ``x`` with zeros where a mask that broadcasts to it says so, whatever ``x`` holds there.

    A product with zero would keep NaN. Without a gradient bits are masked, several times as fast on a CPU.
    """
    if x.requires_grad:
        return x.masked_fill(where, 0.0)
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    return (x.resolve_neg().view(bits) & (where.to(bits) - 1)).view(x.dtype)  # 0 has no bit, and -1 has all


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
