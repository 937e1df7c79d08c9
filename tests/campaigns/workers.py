"""Attempts in processes of their own, so that one that dies or hangs is a failure and not the end."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue

START = 120  # seconds that a worker may take until its first attempt


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended: ``served``, ``refused`` or ``failed``, and then why."""

    number: int
    verdict: str
    why: str = ""


def outcomes(campaign, seed, numbers, workers, limit, environment) -> Iterator[Outcome]:
    """Makes attempts in some worker processes at a time, and yields how they ended, as they end."""
    ended = SimpleQueue()
    shares = [share for share in (list(numbers)[k::workers] for k in range(workers)) if share]
    with ThreadPoolExecutor(len(shares)) as pool:
        for share in shares:
            pool.submit(_make, campaign, seed, share, limit, environment, ended)
        for _ in numbers:
            yield ended.get()


def _make(campaign, seed, numbers, limit, environment, ended):
    """Makes attempts one by one in a worker, and goes on in another one where that is lost."""
    while numbers:
        with tempfile.TemporaryFile() as errors:
            command = [sys.executable, "-W", "error", __file__, campaign, str(seed), json.dumps(numbers)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
            worker = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )
            hung = threading.Event()
            for line in _watched(worker, limit, hung):
                number, *numbers = numbers
                ended.put(Outcome(number, *json.loads(line)))
            worker.wait()
            if numbers:  # the attempt it was at has taken it along
                errors.seek(max(0, errors.seek(0, os.SEEK_END) - 3000))
                how = (
                    f"hung for {limit} seconds"
                    if hung.is_set()
                    else f"ended the process ({worker.returncode})"
                )
                number, *numbers = numbers
                ended.put(Outcome(number, "failed", f"{how}\n{errors.read().decode(errors='replace')}"))


def _watched(worker, limit, hung):
    """Yields what a worker prints, line by line, and ends it where no line comes in time."""

    def end():
        hung.set()
        worker.kill()

    seconds = START
    while True:
        timer = threading.Timer(seconds, end)
        timer.start()
        line = worker.stdout.readline()
        timer.cancel()
        if not line:
            return
        yield line
        seconds = limit


def work(campaign, seed, numbers):
    """Makes attempts and prints how each ended; what no campaign expects ends this process."""
    module = importlib.import_module(campaign)
    for number in numbers:
        try:
            ended = [module.attempt(seed, number)]
        except module.WrongError as wrong:
            ended = ["failed", str(wrong)]
        sys.stdout.write(f"{json.dumps(ended)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    work(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
