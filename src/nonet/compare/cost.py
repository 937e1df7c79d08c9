"""How long a comparison will take and how much memory: one step of every model, measured."""

from __future__ import annotations

import time
from dataclasses import astuple, dataclass

from nonet.compare.cell import home
from nonet.compare.plan import Cell, Combo, Work

ROUNDS = 3  # of probing
PATIENCE = 20.0  # seconds after which no further round begins
STARTUP = 10.0  # seconds of a cell that no length or budget changes: imports, data, decoding, evaluations


@dataclass(frozen=True)
class Step:
    """What one training step of a model costs.

    Attributes:
        seconds: of the step; 0 where nothing is trained.
        bytes: of weights, gradients, moments, and what the graph saves.
        trained: parameters that are trained.
        forward: seconds of reading a batch without a gradient, where it was measured.
        token: seconds of one more token, where it was measured.
    """

    seconds: float
    bytes: int
    trained: int
    forward: float = 0.0
    token: float = 0.0


def probes(cells: tuple[Cell, ...]) -> dict[Combo, Step]:
    """Measures one step of every distinct model among the cells, at its batch and window.

    The models take turns for several rounds, and the least of each counts: other programs on the machine
    can only add to it. Slow models have fewer rounds.
    """
    first = {cell.combo: cell for cell in reversed(cells)}
    began = time.monotonic()
    steps: dict[Combo, Step] = {}
    for _ in range(ROUNDS):
        for combo, cell in first.items():
            found = home(cell).probe(cell)
            steps[combo] = _least(steps.get(combo, found), found)
        if time.monotonic() - began > PATIENCE:
            break
    return steps


def _least(a: Step, b: Step) -> Step:
    return Step(*map(min, astuple(a), astuple(b)))


def seconds_of(cell: Cell, step: Step) -> float:
    """Returns the seconds that a cell will take, given what a step of its model takes."""
    seconds: float = home(cell).seconds(cell, step)
    return STARTUP + seconds


def estimate(cells: tuple[Cell, ...], steps: dict[Combo, Step]) -> dict[str, float]:
    """Returns seconds for all cells, and the bytes of the largest."""
    return {
        "seconds": sum(seconds_of(cell, steps[cell.combo]) for cell in cells),
        "bytes": max(steps[cell.combo].bytes for cell in cells),
    }


def tokens_for(budget: float, cells: tuple[Cell, ...], steps: dict[Combo, Step], work: Work) -> int | None:
    """Returns the tokens a cell that fill ``budget`` seconds, on a coarse grid; None where it is too short.

    The grid (1, 1.5, 2, 3, 4, ... times the tokens of a step) makes two plans on one machine agree although
    their measured speeds differ a little.
    """
    fixed, rate = _split(cells, steps, work)
    if not rate:  # nothing is trained
        return work.tokens if fixed <= budget else None
    return max((tokens for tokens in _grid(work) if fixed + rate * tokens <= budget), default=None)


def least_seconds(cells: tuple[Cell, ...], steps: dict[Combo, Step], work: Work) -> float:
    """Returns the seconds of the smallest training of these cells, and of measuring."""
    fixed, rate = _split(cells, steps, work)
    return fixed + rate * _grid(work)[0]


def _split(cells: tuple[Cell, ...], steps: dict[Combo, Step], work: Work) -> tuple[float, float]:
    """Returns the seconds that no number of tokens changes, and the seconds a token of all cells."""
    rate = sum(steps[c.combo].seconds for c in cells if c.kind != "recall") / (work.batch * work.window)
    return estimate(cells, steps)["seconds"] - rate * work.tokens, rate


def _grid(work: Work) -> list[int]:
    return [work.batch * work.window * 2**k * m // 2 for k in range(4, 40) for m in (2, 3)]
