"""How files become train, validation and test: whole file by whole file, or cut between lines."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from nonet.data.text import BOM

SPLITS = ("train", "validation", "test")

PART = 20  # one part in 20 validates, one tests, the rest trains


@dataclass(frozen=True)
class Stretches:
    """Documents that are stretches of files: ``(path, first byte, last byte + 1)``."""

    parts: list[tuple[Path, int, int]]

    def __iter__(self) -> Iterator[bytes]:
        for path, begin, end in self.parts:
            with path.open("rb") as file:
                file.seek(begin)
                text = file.read(end - begin)
                yield text if begin else text.removeprefix(BOM)


def by_file(root: Path, paths: list[Path]) -> dict[str, Stretches]:
    """Deals out whole files in the order of a hash of their path below ``root``."""

    def draw(path: Path) -> bytes:
        return hashlib.sha256(path.relative_to(root).as_posix().encode()).digest()

    shuffled = sorted(paths, key=draw)
    part = max(1, len(paths) // PART)
    chosen = shuffled[2 * part :], shuffled[part : 2 * part], shuffled[:part]
    return {
        split: Stretches([(path, 0, path.stat().st_size) for path in sorted(mine)])
        for split, mine in zip(SPLITS, chosen, strict=True)
    }


def by_lines(paths: list[Path]) -> dict[str, Stretches]:
    """Cuts the files, laid end to end, at the ends of lines behind 90 % and 95 % of the bytes."""
    sizes = [path.stat().st_size for path in paths]
    begins = list(accumulate(sizes, initial=0))
    total = begins.pop()

    def cut(target: int, following: Callable[[Path, int], int]) -> int:
        i = bisect_right(begins, target) - 1
        return begins[i] + following(paths[i], target - begins[i])

    def stretches(a: int, b: int) -> Stretches:
        files = zip(paths, begins, sizes, strict=True)
        return Stretches(
            [(p, max(a - at, 0), min(b - at, size)) for p, at, size in files if at < b and a < at + size]
        )

    part = total // PART
    for following in (_next_line, _next_character):  # a text of few lines is cut within one
        first, second = cut(total - 2 * part, following), cut(total - part, following)
        if 0 < first < second < total:
            break
    parts = stretches(0, first), stretches(first, second), stretches(second, total)
    return dict(zip(SPLITS, parts, strict=True))


def _next_line(path: Path, offset: int) -> int:
    """Returns the first place from ``offset`` on where a line begins, or the file's end."""
    if offset == 0:
        return 0
    with path.open("rb") as file:
        file.seek(offset - 1)
        file.readline()
        return file.tell()


def _next_character(path: Path, offset: int) -> int:
    """Returns the first place from ``offset`` on where a UTF-8 character begins, or the file's end."""
    with path.open("rb") as file:
        file.seek(offset)
        head = file.read(4)
    return offset + next((i for i, byte in enumerate(head) if byte & 0xC0 != 0x80), len(head))
