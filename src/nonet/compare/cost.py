"""How long a comparison will take and how much memory: one step of every model, measured."""

from __future__ import annotations

from dataclasses import dataclass

from nonet.compare.cell import home
from nonet.compare.plan import Cell, Combo, Work

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
    """Measures one step of every distinct model among the cells, at its batch and window."""
    first = {cell.combo: cell for cell in reversed(cells)}
    return {combo: home(cell).probe(cell) for combo, cell in first.items()}


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


def tokens_for(budget: float, cells: tuple[Cell, ...], steps: dict[Combo, Step], work: Work) -> int:
    """Returns the tokens a cell that fill ``budget`` seconds, on a coarse grid.

    The grid (1, 1.5, 2, 3, 4, ... times the tokens of a step) makes two plans on one machine agree although
    their measured speeds differ a little.

    Raises:
        ValueError: the budget does not suffice for the smallest comparison of these cells.
    """
    per_step = work.batch * work.window
    rate = sum(steps[c.combo].seconds for c in cells if c.kind != "recall") / per_step
    fixed = estimate(cells, steps)["seconds"] - rate * work.tokens
    if not rate:  # nothing is trained
        return work.tokens
    wanted = (budget - fixed) / rate
    grid = [per_step * 2**k * m // 2 for k in range(4, 40) for m in (2, 3)]
    fitting = [tokens for tokens in grid if tokens <= wanted]
    if not fitting:
        least = fixed + rate * grid[0]
        raise ValueError(
            f"budget of {budget:.0f} s is too short for {len(cells)} cells, which need about {least:.0f} s; "
            "compare fewer slots, methods, seeds or lengths"
        )
    return max(fitting)
