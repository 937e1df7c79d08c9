"""Progress for people on standard error, and Ctrl-C that ends a training in order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback

from nonet.training.checkpoint import Keeper


class Bar(TrainerCallback):
    """A bar of steps; where nobody watches, a line now and then."""

    def __init__(self, people: Console, steps: int, first: int) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("step {task.completed} of {task.total}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.progress = Progress(*columns, console=people, transient=True)
        self.task = self.progress.add_task("training", total=steps, completed=first)

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.progress.stop()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar."""
        self.progress.advance(self.task)

    def tell(self, words: str) -> None:
        """Shows what was measured last."""
        self.progress.update(self.task, description=f"training, {words}")
        if not self.progress.console.is_terminal:  # a log file gets a line now and then
            task = self.progress.tasks[self.task]
            left = "" if task.time_remaining is None else f", {task.time_remaining:.0f} s left"
            self.progress.console.print(f"step {task.completed:.0f} of {task.total:.0f}: {words}{left}")


@contextmanager
def interruptible(keeper: Keeper) -> Iterator[None]:
    """Lets the first Ctrl-C end the training after the step in flight; a second one ends the process."""
    before = signal.getsignal(signal.SIGINT)

    def stop(number: int, frame: Any) -> None:
        keeper.stop = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def busy(people: Console, doing: str) -> Iterator[Callable[[str], None]]:
    """Shows what is being done, and what its function is called with; where nobody watches, as lines."""
    if people.is_terminal:
        with people.status(doing) as status:
            yield status.update
    else:
        people.print(doing)
        yield people.print
