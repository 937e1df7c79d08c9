"""Time and memory of a trained model, each with a plain definition."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def timing(run: Callable[[], Any], repeats: int, device: torch.device) -> dict[str, float]:
    """Returns the median and the 20th and 80th percentile of the seconds of ``run``, after one warm-up."""
    seconds = []
    run()
    for _ in range(repeats):
        _finish(device)
        began = time.perf_counter()
        run()
        _finish(device)
        seconds.append(time.perf_counter() - began)
    low, high = (float(torch.tensor(seconds).quantile(q)) for q in (0.2, 0.8))
    return {"median": statistics.median(seconds), "low": low, "high": high, "runs": repeats}


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
    """Returns the seconds of a forward and backward pass, and the bytes that are kept between the two."""
    ids = torch.zeros(batch, window, dtype=torch.long, device=next(model.parameters()).device)
    saved: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids=ids, labels=ids, **options).loss.backward()
    began = time.perf_counter()
    model(input_ids=ids, labels=ids, **options).loss.backward()
    return time.perf_counter() - began, sum(saved.values())


def growth(model: Any, lengths: Sequence[int], repeats: int, patience: float) -> list[dict[str, Any]]:
    """Returns time and peak memory of a forward and of a forward and backward pass at every length.

    Batch 1, random tokens. Once a pass takes longer than ``patience`` seconds, longer ones are left out.
    """
    rows = []
    generator = torch.Generator().manual_seed(0)
    slow: set[str] = set()
    for length in lengths:
        ids = torch.randint(model.config.vocab_size, (1, length), generator=generator).to(model.device)

        def forward(ids: Tensor = ids) -> None:
            with torch.no_grad():
                model(input_ids=ids, use_cache=False)

        def backward(ids: Tensor = ids) -> None:
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            model.zero_grad(set_to_none=True)

        row: dict[str, Any] = {"length": length}
        for name, run in (("forward", forward), ("backward", backward)):
            row[name] = row[f"{name}_bytes"] = None
            model.train(name == "backward")
            if name in slow or not _can(model, length):
                continue
            with Peak(model.device) as peak:
                run()
            row[name] = timing(run, repeats, model.device)
            row[f"{name}_bytes"] = peak.bytes
            if row[name]["median"] > patience:
                slow.add(name)
        rows.append(row)
    model.eval()
    return rows


@torch.no_grad()
def decode(model: Any, contexts: Sequence[int], repeats: int) -> list[dict[str, Any]]:
    """Returns the time of one more token after contexts of several lengths, and the cache's bytes."""
    rows: list[dict[str, Any]] = []
    generator = torch.Generator().manual_seed(0)
    for context in contexts:
        if not _can(model, context + 3 * repeats + 1):
            rows.append({"context": context, "step": None, "cache_bytes": None})
            continue
        ids = torch.randint(model.config.vocab_size, (1, context), generator=generator).to(model.device)
        cache = model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values
        size = cache_bytes(cache)
        token = ids[:, -1:]

        def step(token: Tensor = token, cache: Any = cache) -> None:
            model(input_ids=token, past_key_values=cache, use_cache=True)

        rows.append(
            {
                "context": context,
                "step": timing(step, 3 * repeats, model.device),
                "cache_bytes": size,
            }
        )
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
