"""Runs that are killed, once or twice, at an operation on a file, and then finished by the same command.

A child ends at once, as by SIGKILL, before one of its operations, or with half of what it was to write. Then
no more than the step in flight is lost; and after the same command the files are those of a run that nothing
happened to, to the bit, with nothing beside them.
"""

import os
import sys
import tempfile
from random import Random

import safetensors.torch
from sandbox import KINDS, NEVER, POINTS, STEPS, Wrong, fresh, hold_finished, kept, run, undisturbed

COUNT, LIMIT = 200, 120
_CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink"}
_DEAD = 99


def attempt(seed, number):
    """Kills a run, finishes it, and returns ``"served"``; raises Wrong where something is lost or left."""
    random = Random(f"{seed} {number}")
    kind = KINDS[number % len(KINDS)]
    points = undisturbed(kind)[0].points or _counted(kind)
    first = random.randint(1, points)
    deaths = [first]
    if number // len(KINDS) % 2:  # a second time, while the first is being repaired or later
        deaths.append(random.randint(1, max(10, points - first)))
    half = random.random() < 0.5
    with tempfile.TemporaryDirectory() as folder:
        place, had = fresh(folder), 0
        what = f"{kind}, killed at {deaths} of {points}{' with half a file' if half else ''}"
        for death in deaths:
            ended = run(kind, place, lambda shared, death=death: _die(shared, death, half))
            if ended.status not in (0, _DEAD):
                raise Wrong(f"{what}: ended with {ended.status}: {ended.said}")
            has = kept(place, kind)
            if has < max(had, ended.done - 1):
                raise Wrong(f"{what}: {has} steps are kept of {ended.done}, after {had}: {ended.said}")
            had = has
        hold_finished(kind, place, run(kind, place), what)
    return "served"


def _counted(kind):
    """How many operations on files an undisturbed run makes."""
    if kind not in _POINTS:
        with tempfile.TemporaryDirectory() as folder:
            _POINTS[kind] = run(kind, fresh(folder), lambda shared: _die(shared, NEVER, False)).points
    return _POINTS[kind]


_POINTS = {}


def _die(shared, death, half):
    """Counts the operations on files of this process, and ends it at one of them."""
    here = os.getcwd()
    write, serialize, sync = os.write, safetensors.torch.serialize_file, os.fsync

    def point(by_halves=lambda: None):
        shared[POINTS] += 1
        if shared[POINTS] == death:
            if half:
                by_halves()
            os._exit(_DEAD)

    def on_event(event, arguments):
        if event in _CHANGES and _inside(arguments[0], here):
            point()
        elif event == "open" and _inside(arguments[0], here) and _writes(*arguments[1:]):
            point()

    def half_a_write(descriptor, data):
        point(lambda: write(descriptor, data[: len(data) // 2]))
        return write(descriptor, data)

    def half_a_file(tensors, path, metadata=None):
        def by_halves():
            serialize(tensors, path, metadata)
            os.truncate(path, os.stat(path).st_size // 2)

        point(by_halves)
        serialize(tensors, path, metadata)

    def synced(descriptor):
        point()
        sync(descriptor)

    os.write, os.fsync, safetensors.torch.serialize_file = half_a_write, synced, half_a_file
    sys.addaudithook(on_event)


def _inside(path, here):
    """Whether a path lies in the folder of the run; what is named beside an open folder does."""
    return isinstance(path, str) and path != "said" and os.path.join(here, path).startswith(here)


def _writes(mode, flags):
    if mode is None:
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return any(letter in mode for letter in "wax+")
