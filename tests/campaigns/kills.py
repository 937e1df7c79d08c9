"""Runs that are killed, once or twice, at an operation on a file, and then finished by the same command.

No more than the step in flight may be lost. After the same command the files must be those of a run that
nothing happened to, to the bit, with nothing beside them.
"""

import tempfile
from random import Random

import deaths
from sandbox import KINDS, WrongError, fresh, hold_finished, kept, run, undisturbed

COUNT, LIMIT = 200, 120


def attempt(seed, number):
    """Kills a run, finishes it, and returns ``"served"``; raises WrongError if something is lost or left."""
    random = Random(f"{seed} {number}")
    kind = KINDS[number % len(KINDS)]
    points = undisturbed(kind)[0].points
    places = [random.randint(1, points)]
    if number % 2:  # a second time, while it recovers or later
        places.append(random.randint(1, max(10, points - places[0])))
    return kill(kind, places, random.random() < 0.5)


def kill(kind, places, half):
    """Kills a run at the operations of the given numbers, one run after the other, and finishes it."""
    what = f"{kind}, killed at {places}{' with half of a file' if half else ''}"
    with tempfile.TemporaryDirectory() as folder:
        place, had = fresh(folder), 0
        for death in places:
            ended = run(kind, place, death=death, half=half)
            if ended.status not in (0, deaths.STATUS):
                raise WrongError(f"{what}: ended with {ended.status}: {ended.said}")
            has = kept(place, kind)
            if has < max(had, ended.done - 1):
                raise WrongError(f"{what}: {has} steps are kept of {ended.done}, after {had}: {ended.said}")
            had = has
        hold_finished(kind, place, run(kind, place), what)
    return "served"
