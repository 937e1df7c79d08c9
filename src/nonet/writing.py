"""The one way to write files and folders: whenever the process ends, each is whole or absent."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PREFIX = ".nonet-writing-"
_ABANDONED = 86400.0  # seconds after which a folder has no owner, on a disk or a system without locks
_ADVICE = "choose another folder"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of a disk without room

Write = Callable[[Path], object]  # writes the file, or fills the folder, at the path that it is given


def write_whole(path: Path, write: Write | str) -> None:
    """Writes a new file, then replaces the old one in one step; a process killed before leaves the old one.

    Args:
        path: the file; its folder exists.
        write: the text, or a function that writes the file at the path that it is given.

    Raises:
        OSError: the file cannot be written; the message names it and its folder.
    """
    with _named(f"{path.name} in {path.parent}", path.parent), _scratch(path.parent) as scratch:
        fresh = scratch / path.name
        if isinstance(write, str):
            fresh.write_text(write, encoding="utf-8", newline="\n")
        else:
            write(fresh)
        _sync(fresh)
        fresh.replace(path)


def write_folder(
    folder: Path, write: Write, last: str, *, shared: bool = False, advice: str = _ADVICE
) -> None:
    """Writes all new files first, and then moves them into a folder.

    A killed process leaves the old files, the new files, or a folder without ``last``: old and new files
    never lie beside ``last`` together, unless the folder is shared.

    Args:
        folder: created if it is missing; its other files stay.
        write: a function that fills the folder that it is given.
        last: the file whose presence says that the others are whole. It is removed first and moved in last.
        shared: other processes read the folder, or write the same files; ``last`` then stays.
        advice: ends the error message with what to do.

    Raises:
        OSError: a file cannot be written; the message names the folder.
    """
    with _named(folder, _nearest(folder), advice):
        folder.mkdir(parents=True, exist_ok=True)
    with _named(folder, folder, advice), _scratch(folder) as scratch:
        write(scratch)
        files = sorted(scratch.iterdir(), key=lambda file: file.name == last)
        for file in scratch.rglob("*"):
            if file.is_file():
                _sync(file)
        if not shared:
            (folder / last).unlink(missing_ok=True)
        for file in files:
            place = folder / file.name
            if place.is_dir() or (file.is_dir() and os.path.lexists(place)):  # replace would refuse
                place.rename(Path(tempfile.mkdtemp(dir=scratch), file.name))
            file.replace(place)


def check_writable(folder: Path, need: int = 0) -> None:
    """Raises OSError if a folder cannot be created or written, or its disk has less than ``need`` bytes free.

    It writes a trial file in the nearest folder that exists, and removes it.
    """
    above = _nearest(folder)
    if not above.is_dir():
        raise NotADirectoryError(f"{folder}: {above} is a file; name a folder")
    with _named(folder, above):
        with _scratch(above) as scratch:
            parts = folder.absolute().relative_to(above).parts
            trial = scratch.joinpath(*(part for part in parts if part != ".."))  # which leads out of scratch
            trial.mkdir(parents=True, exist_ok=True)
            (trial / "trial").write_bytes(b"\n")
        free = shutil.disk_usage(above).free
    if free < need:
        full = OSError(
            f"the disk of {folder} has {free:,} bytes free, but {need:,} are needed; free some space there, "
            "or choose another folder"
        )
        full.errno = errno.ENOSPC
        raise full


def remove_abandoned(folder: Path) -> None:
    """Removes what killed writers left in a folder; a living writer keeps its files."""
    for place in folder.glob(f"{_PREFIX}*"):
        lock = _open(place)
        try:
            if _abandoned(place, lock):
                shutil.rmtree(place, ignore_errors=True)
        finally:
            if lock is not None:
                os.close(lock)


def cannot_write(what: str | Path, error: OSError, advice: str = _ADVICE) -> OSError:
    """Returns an error of the same number that says what cannot be written, why, and what to do."""
    reason = error.strerror or str(error)
    room = "free some space there, or " if error.errno in FULL else ""
    said = type(error)(f"cannot write {what}: {reason}; {room}{advice}")
    said.errno = error.errno
    return said


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """An empty folder of an unpredictable name inside a folder, so on its disk; this process locks it."""
    remove_abandoned(folder)
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
        lock = _open(scratch)
        if fcntl is not None and lock is not None:
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
        if scratch.exists():  # no other process removed it before it was locked
            break
        if lock is not None:
            os.close(lock)
    with contextlib.ExitStack() as stack:
        if lock is not None:
            stack.callback(os.close, lock)
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        yield scratch


@contextlib.contextmanager
def _named(what: str | Path, folder: Path, advice: str = _ADVICE) -> Iterator[None]:
    """Turns an error of writing into a folder into one sentence: what, why, and what to do."""
    if folder.name.startswith(_PREFIX):  # the writer of the folder above names it
        yield
        return
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise cannot_write(what, OSError(code, os.strerror(code)), advice) from error
    except OSError as error:
        inside = error.filename is None or _within(error.filename, folder)
        if error.strerror is None or not inside:  # a sentence already, or about another file
            raise
        raise cannot_write(what, error, advice) from error


def _within(name: str | bytes, folder: Path) -> bool:
    return Path(os.fsdecode(name)).absolute().is_relative_to(folder.absolute())


def _abandoned(place: Path, lock: int | None) -> bool:
    """Whether no process writes in a folder: the system unlocks it when its process ends."""
    if fcntl is not None and lock is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a disk without locks
            pass
        else:
            return True
    try:
        about = place.lstat()
    except OSError:  # its owner has just removed it
        return False
    return stat.S_ISDIR(about.st_mode) and time.time() - about.st_mtime > _ABANDONED


def _open(place: Path) -> int | None:
    """Opens a folder, never a link to one; None if it is gone, or on a system that opens no folders."""
    try:
        return os.open(place, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None


def _nearest(folder: Path) -> Path:
    """The folder itself or the nearest path above it that exists; a dangling link counts as existing."""
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    return place


def _sync(file: Path) -> None:
    """Waits until a file is on disk; some disks report only then that they are full."""
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())
