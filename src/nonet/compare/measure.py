"""Time and memory of a trained model, each with a plain definition."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonet.compare.spread import band
from nonet.ecosystem import returned_cache


def in_turns(
    calls: Sequence[Callable[[], Any]], repeats: int, device: torch.device, seed: int
) -> list[dict[str, float]]:
    """Returns for each call the median of its seconds, and their range.

    Each round makes every call once, in a random order that ``seed`` decides: a machine that is busy for a
    while slows all calls, and not the one whose turn it happens to be. The range goes from the 20th
    percentile, less the share that was spent waiting for other programs, to the 80th. The caller has warmed
    the calls up.
    """
    order = random.Random(seed)
    seconds: list[list[float]] = [[] for _ in calls]
    with Waiting() as waiting:
        for _ in range(repeats):
            for i in order.sample(range(len(calls)), len(calls)):
                seconds[i].append(_seconds(calls[i], device))
    return [_timing(found, waiting.share) for found in seconds]


def least(run: Callable[[], Any], times: int, device: torch.device) -> float:
    """Returns the least seconds of several calls: other programs on the machine can only add to them."""
    return min(_seconds(run, device) for _ in range(times))


def _seconds(run: Callable[[], Any], device: torch.device) -> float:
    _finish(device)
    began = time.perf_counter()
    run()
    _finish(device)
    return time.perf_counter() - began


def _timing(seconds: Sequence[float], share: float) -> dict[str, float]:
    low, high = band(seconds)
    return {"median": statistics.median(seconds), "low": share * low, "high": high, "runs": len(seconds)}


class Waiting:
    """How much sooner the block would have ended on a machine that does nothing else, at best.

    Linux counts for each thread the time that it was ready to run while another program had the core. Without
    that a block takes at least the rest of its time, and at least as long as its busiest thread computed.

    Attributes:
        share: that least time over the time that the block took; 1 where the system does not count.
    """

    share = 1.0

    def __enter__(self) -> Waiting:
        self._began, self._before = time.perf_counter(), _threads()
        return self

    def __exit__(self, *exception: object) -> None:
        took, after = time.perf_counter() - self._began, _threads()
        # A thread that began within the block is not in the first count, one that ended not in the second.
        lived = [(after[i], self._before.get(i, (0, 0))) for i in after]
        ran, waited = ([(late[k] - early[k]) / 1e9 for late, early in lived] for k in (0, 1))
        self.share = min(1.0, max([took - sum(waited), *ran]) / took)


def _threads() -> dict[str, tuple[int, int]]:
    """Returns for each thread of this process the nanoseconds that it ran, and waited for a core."""
    found = {}
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            ran, waited, _ = map(int, file.read_text(encoding="utf-8").split())
            found[file.parent.name] = (ran, waited)
    return found


class Peak:
    """Peak memory while the block runs, above what was in use before it; None where it cannot be told.

    On an accelerator it is the allocator's peak; on Linux the high-water mark of the process's
    resident memory, which the kernel lets a process reset.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes: int | None = None

    def __enter__(self) -> Peak:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before: int | None = torch.cuda.memory_allocated(self.device)
        else:
            self._before = _reset_high_water()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._before is None:
            return
        peak = (
            torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else _status("VmHWM")
        )
        self.bytes = None if peak is None else max(0, peak - self._before)


def cost_of_step(model: Any, batch: int, window: int, **options: Any) -> tuple[float, int]:
    """Returns the least seconds of a forward and backward pass, and the bytes kept between the two."""
    device = next(model.parameters()).device
    ids = torch.zeros(batch, window, dtype=torch.long, device=device)
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids, labels=ids, **options).loss.backward()
    seconds = least(lambda: model(input_ids=ids, labels=ids, **options).loss.backward(), 2, device)
    return seconds, sum(saved.values())


def growth(
    model: Any, lengths: Sequence[int], repeats: int, seed: int, patience: float
) -> list[dict[str, Any]]:
    """Returns time and peak memory of a forward and of a forward and backward pass at every length.

    Batch 1, random tokens, all lengths in turns. Once a pass takes longer than ``patience`` seconds, longer
    ones are left out.
    """
    generator = torch.Generator().manual_seed(0)
    ids = {n: torch.randint(model.config.vocab_size, (1, n), generator=generator) for n in lengths}
    names = ("forward", "backward", "forward_bytes", "backward_bytes")
    rows: list[dict[str, Any]] = [{"length": n, **dict.fromkeys(names)} for n in lengths]

    def forward(ids: Tensor) -> None:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)

    def backward(ids: Tensor) -> None:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    for name, run in (("forward", forward), ("backward", backward)):
        model.train(name == "backward")
        calls = {}
        for row in (row for row in rows if _can(model, row["length"])):
            call = calls[row["length"]] = functools.partial(run, ids[row["length"]].to(model.device))
            with Peak(model.device) as peak:
                took = _seconds(call, model.device)
            row[f"{name}_bytes"] = peak.bytes
            if took > patience and _seconds(call, model.device) > patience:  # slow, and not just interrupted
                break
        found = dict(zip(calls, in_turns([*calls.values()], repeats, model.device, seed), strict=True))
        for row in rows:
            row[name] = found.get(row["length"])
    model.eval()
    return rows


@torch.no_grad()
def decode(model: Any, contexts: Sequence[int], repeats: int, seed: int) -> list[dict[str, Any]]:
    """Returns the time of one more token after contexts of several lengths, in turns, and the cache's bytes.

    A context that the model cannot hold has None for both.
    """
    rows: list[dict[str, Any]] = [{"context": c, "step": None, "cache_bytes": None} for c in contexts]
    generator = torch.Generator().manual_seed(0)
    calls = {}
    for row in (row for row in rows if _can(model, row["context"] + 3 * repeats + 1)):
        ids = torch.randint(model.config.vocab_size, (1, row["context"]), generator=generator)
        ids = ids.to(model.device)
        cache = returned_cache(model(input_ids=ids, use_cache=True, logits_to_keep=1))
        row["cache_bytes"] = cache_bytes(cache)
        call = functools.partial(model, input_ids=ids[:, -1:], cache=cache, use_cache=True)
        call()
        calls[row["context"]] = call
    found = dict(zip(calls, in_turns([*calls.values()], 3 * repeats, model.device, seed), strict=True))
    for row in rows:
        row["step"] = found.get(row["context"])
    return rows


def cache_bytes(cache: Any) -> int:
    """Returns the bytes of all tensors that a cache keeps."""
    total = 0
    for layer in cache.layers:
        kept = getattr(layer, "nbytes", None)
        total += kept if kept is not None else layer.keys.nbytes + layer.values.nbytes
    return total


def _can(model: Any, length: int) -> bool:
    """Whether the model's positions reach this length; a table of positions ends."""
    position = getattr(getattr(model, "model", None), "position", None)
    if position is None:  # not one of ours
        return True
    try:
        position.embed(torch.tensor([[length - 1]], device=model.device))
    except ValueError:
        return False
    return True


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _reset_high_water() -> int | None:
    """Gives freed memory back, resets the kernel's high-water mark, returns the bytes in use."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except (OSError, AttributeError):
        return None
    return _status("VmRSS")


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":")), None)
