"""The one way to write: a file or a folder is whole or not there, wherever a process ends."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
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
_ABANDONED = 86400.0  # seconds after which a folder belongs to nobody, where the system has no locks
_ADVICE = "choose another folder"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # numbers of errors that say that there is no room

Write = Callable[[Path], object]  # writes what lies at the path that it is given


def write_whole(path: Path, write: Write | str) -> None:
    """Puts a new file in place of the last one in one step; a process that ends before leaves the last one.

    Args:
        path: the file; its folder exists.
        write: the text, or what writes the file at the path that it is given.

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
    """Puts new files into a folder, after all of them are written.

    A process that ends before leaves the old files, the new ones, or a folder without ``last``: never a
    mix that can be read.

    Args:
        folder: made where it is missing; its other files stay.
        write: fills the folder that it is given.
        last: the file that says that the others are whole. It is removed first and put in last.
        shared: other processes read the folder, or write the same files: then ``last`` is not removed.
        advice: what to do where it cannot be written.

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
            if place.is_dir() or (file.is_dir() and os.path.lexists(place)):  # these are not replaced
                place.rename(Path(tempfile.mkdtemp(dir=scratch), file.name))
            file.replace(place)


def check_writable(folder: Path, need: int = 0) -> None:
    """Raises OSError where a folder cannot be made or written, or its disk has less than ``need`` bytes free.

    It is tried, in the nearest folder that exists, and nothing is left behind.
    """
    above = _nearest(folder)
    if not above.is_dir():
        raise NotADirectoryError(f"{folder}: {above} is a file; name a folder")
    with _named(folder, above):
        with _scratch(above) as scratch:
            trial = scratch / folder.absolute().relative_to(above)
            trial.mkdir(parents=True, exist_ok=True)
            (trial / "trial").write_bytes(b"\n")
        free = shutil.disk_usage(above).free
    if free < need:
        full = OSError(
            f"the disk of {folder} has {free:,} bytes free, and {need:,} are needed; free some space there, "
            "or choose another folder"
        )
        full.errno = errno.ENOSPC
        raise full


def remove_abandoned(folder: Path) -> None:
    """Removes what processes that were killed as they wrote into a folder have left there."""
    for place in folder.glob(f"{_PREFIX}*"):
        lock = _open(place)
        if lock is None:
            continue
        try:
            if _abandoned(lock):
                shutil.rmtree(place, ignore_errors=True)
        finally:
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
    """An empty folder in a folder, so on its disk, that nobody can foresee; this process keeps it locked."""
    remove_abandoned(folder)
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=folder))
        lock = _open(scratch)
        if fcntl is not None and lock is not None:
            with contextlib.suppress(OSError):  # a disk without locks
                fcntl.flock(lock, fcntl.LOCK_EX)
        if scratch.exists():  # nobody took it for abandoned before it was locked
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
    """Makes one sentence of an error of writing into a folder: what, why, and what to do."""
    if folder.name.startswith(_PREFIX):  # whoever writes the folder above says it
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
        if error.strerror is None or not inside:  # it is one sentence already, or of something else
            raise
        raise cannot_write(what, error, advice) from error


def _within(name: str | bytes, folder: Path) -> bool:
    return Path(os.fsdecode(name)).absolute().is_relative_to(folder.absolute())


def _abandoned(lock: int) -> bool:
    """Whether no process writes in a folder: the system unlocks it when its process ends."""
    if fcntl is not None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:  # a disk without locks
            pass
        else:
            return True
    return time.time() - os.fstat(lock).st_mtime > _ABANDONED


def _open(place: Path) -> int | None:
    """Opens a folder, never a link to one; None where that cannot be done."""
    try:
        return os.open(place, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return None


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest thing above it that exists, a link among them if it leads nowhere."""
    place = folder.absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    return place


def _sync(file: Path) -> None:
    """Waits until the disk has a file; some disks say only then that they are full."""
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())
