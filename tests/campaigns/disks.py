"""Runs on disks that are full, from the start or from some step on, and then finished where there is room.

As root the disk is a small one in memory, which something else fills; otherwise, and in every second
attempt, the system refuses files above a size. The run must finish as if nothing had happened, or say in one
line which folder has no room. Then nothing half-written may be there, the last checkpoint must load, and the
same command must finish the run.
"""

import functools
import os
import resource
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from random import Random

from safetensors import safe_open
from sandbox import KINDS, OUT, STEPS, WrongError, fresh, hold_finished, kept, run, undisturbed

COUNT, LIMIT = 100, 120
_SIZE = 64 << 20  # bytes of a disk in memory
_WHOLE = {"checkpoint.safetensors", "plan.json", "rows.jsonl", "report.html"}  # of an unfinished run


def attempt(seed, number):
    """Fills a disk, makes room, and returns how the first run ended; raises WrongError where one is wrong."""
    random = Random(f"{seed} {number}")
    kind = KINDS[number % len(KINDS)]
    first = random.randrange(STEPS + 1)  # 0 is before everything
    last = random.randint(first + 1, STEPS) if first < STEPS and random.random() < 0.3 else None
    limited = number // len(KINDS) % 2 or not _can_mount()
    with tempfile.TemporaryDirectory() as folder:
        place = fresh(folder)
        if limited:
            room = 1 + int(_largest(kind) * random.random() ** 2)
            ended = _run(
                kind, place, first, last, lambda: _limit(room), lambda: _limit(resource.RLIM_INFINITY)
            )
            return _judged(
                kind, place, ended, first, f"{kind}, files up to {room} from step {first} to {last}"
            )
        room = int(_need(kind) * random.random() ** 3)
        filler = place / "disk" / "filler"
        with _disk(place / "disk"):
            ended = _run(kind, place, first, last, lambda: _fill(filler, room), filler.unlink)
            filler.unlink(missing_ok=True)
            return _judged(
                kind, place, ended, first, f"{kind}, {room} bytes free from step {first} to {last}"
            )


def _run(kind, place, first, last, begin, end):
    """Runs a command whose disk is full from one step to another."""

    def after_step(step):
        if step == first:
            begin()
        if step == last:
            end()

    return run(kind, place, after_step=after_step)


def _judged(kind, place, ended, first, what):
    if ended.status == 0:
        hold_finished(kind, place, ended, what)
        return "served"
    lines = [line for line in ended.said.splitlines() if line.startswith("nonet: ")]
    if ended.status != 1 or len(lines) != 1 or "Traceback" in ended.said or "disk/" not in lines[0]:
        raise WrongError(f"{what}: ended with {ended.status}: {ended.said}")
    out = place / OUT
    half = {str(p.relative_to(place)) for p in (place / "disk").rglob(".*")}
    half |= {p.name for p in out.iterdir() if p.name not in _WHOLE} if out.exists() else set()
    if half:
        raise WrongError(f"{what}: it left {sorted(half)}: {ended.said}")
    if kept(place, kind) < min(first, ended.done) - 1:
        raise WrongError(f"{what}: only {kept(place, kind)} steps are kept: {ended.said}")
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        with safe_open(checkpoint, framework="pt") as file:
            [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118  (it is no dictionary)
    rows = out / "rows.jsonl"
    if rows.exists() and rows.read_bytes()[-1:] not in (b"", b"\n"):
        raise WrongError(f"{what}: it left half a row")
    hold_finished(kind, place, run(kind, place), f"{what}; {lines[0]}")
    return "refused"


@functools.cache
def _can_mount():
    try:
        with tempfile.TemporaryDirectory() as folder, _disk(Path(folder)):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def _disk(place):
    """A disk in memory at a folder."""
    options = ["-t", "tmpfs", "-o", f"size={_SIZE}", "tmpfs", str(place)]
    subprocess.run(["mount", *options], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _fill(filler, room):
    """Leaves so many bytes free on a disk."""
    disk = os.statvfs(filler.parent)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, disk.f_bavail * disk.f_frsize - room))


def _limit(size):
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))


def _sizes(kind):
    return {name: len(read) for name, read in undisturbed(kind)[1].items() if read is not None}


def _largest(kind):
    """A little more than the largest file of a run, its checkpoint, has."""
    return 4 * max(size for name, size in _sizes(kind).items() if name.startswith("disk/"))


def _need(kind):
    """More than a run needs: two checkpoints, of weights and two moments each, the result and the tokens."""
    return sum(8 * size if name.startswith(str(OUT)) else size for name, size in _sizes(kind).items())
