"""What the rows of one entry say: numbers over the seeds, and series along an axis."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from nonet.compare.crossover import Point
from nonet.compare.spread import Estimate, band, estimate
from nonet.compare.store import Record

GROWTH = ("forward", "backward", "forward_bytes", "backward_bytes")


def numbers(rows: Sequence[Record], window: int, budget: float | None) -> dict[str, Estimate | None]:
    """Returns the ``numbers`` of :class:`nonet.compare.summary.Entry`.

    Args:
        rows: finished ones of one entry, without those of recall.
        window: the trained length.
        budget: seconds of training at which equal time is read.
    """
    last = [max(row.get("decode") or [{}], key=lambda d: d.get("context", 0)) for row in rows]
    return {
        "quality": estimate(_at(row, "validation", "bits_per_byte") for row in rows),
        "timed": estimate((_at_time(row, budget) for row in rows), (_in_time(row, budget) for row in rows)),
        "beyond": estimate(_beyond(row, window) for row in rows),
        "speed": estimate((_at(row, "train", "tokens_per_second") for row in rows), map(_speeds, rows)),
        "peak": estimate(row.get("peak_bytes") for row in rows),
        "step": estimate(
            (_at(found, "step", "median") for found in last), (_range(found.get("step")) for found in last)
        ),
        "cache": estimate(found.get("cache_bytes") for found in last),
        "trained": estimate(row.get("trained_parameters") for row in rows),
        "optimizer": estimate(row.get("optimizer_bytes") for row in rows),
        "file": estimate(row.get("file_bytes") for row in rows),
        **_at_best_block(rows),
    }


def series(rows: Sequence[Record]) -> dict[str, tuple[Point, ...]]:
    """Returns the ``series`` of :class:`nonet.compare.summary.Entry` from rows as :func:`numbers` takes."""
    curves = [point for row in rows for point in _at(row, "train", "curve") or ()]
    growth = [point for row in rows for point in row.get("growth") or ()]
    decode = [point for row in rows for point in row.get("decode") or ()]
    places = [point for row in rows for point in row.get("places") or ()]
    tuned = [
        {"trained": count, "bits_per_byte": _at(row, "validation", "bits_per_byte")}
        for row in rows
        if (count := row.get("trained_parameters"))
    ]
    blocks = _blocks(rows)
    longest = max((block["block"] for block in blocks), default=None)
    drafts = [
        {"place": place, "accepted": share}
        for block in blocks
        if block["block"] == longest
        for place, share in enumerate(block["accepted_at"], 1)
    ]
    return {
        "tokens": _points(curves, "tokens", "bits_per_byte"),
        # The seeds' clocks differ a little: a point stands at the mean of their seconds.
        "seconds": _points(curves, "tokens", "bits_per_byte", at="seconds"),
        **{name: _points(growth, "length", name) for name in GROWTH},
        "step": _points(decode, "context", "step"),
        "cache_bytes": _points(decode, "context", "cache_bytes"),
        "places": _points(places, "to", "bits_per_byte", at="middle"),
        "trained": _points(tuned, "trained", "bits_per_byte"),
        "ratio": _points(blocks, "block", "ratio"),
        "accepted": _points(blocks, "block", "acceptance"),
        "accepted_at": _points(drafts, "place", "accepted"),
    }


def _points(records: Iterable[Record], key: str, name: str, at: str | None = None) -> tuple[Point, ...]:
    """Joins the seeds' records of one ``key`` into a point: the mean of values, the outermost range."""
    groups: dict[float, list[Point]] = {}
    for record in records:
        value: Any = record.get(name)
        if value is None:
            continue
        x = (record["from"] + record["to"]) / 2 if at == "middle" else record[at or key]
        timing = value if isinstance(value, dict) else {"median": value, "low": value, "high": value}
        groups.setdefault(record[key], []).append(Point(x, timing["median"], timing["low"], timing["high"]))
    return tuple(
        Point(
            statistics.fmean(point.x for point in group),
            statistics.fmean(point.y for point in group),
            min(point.low for point in group),
            max(point.high for point in group),
            tuple(point.y for point in group),
        )
        for _, group in sorted(groups.items())
    )


def _at_best_block(rows: Sequence[Record]) -> dict[str, Estimate | None]:
    """The numbers of a pairing with the length of block at which it writes fastest."""
    ratios = _points(_blocks(rows), "block", "ratio")
    best = max(ratios, key=lambda point: point.y).x if ratios else 0  # the primary alone drafts nothing
    found = [block for row in rows for block in row.get("blocks") or () if block["block"] == best]
    return {
        "block": estimate(b["block"] for b in found),
        "rate": estimate(b["tokens_per_second"] for b in found),
        "ratio": estimate((b["ratio"]["median"] for b in found), (_range(b["ratio"]) for b in found)),
        "accepted": estimate(b["acceptance"] for b in found),
        "pass": estimate(b["tokens_per_round"] for b in found),
        "identical": estimate(b["identical"] for b in found),
        "texts": estimate(b["texts"] for b in found),
    }


def _blocks(rows: Sequence[Record]) -> list[Record]:
    """What was measured with drafts, of every length of block."""
    return [block for row in rows for block in row.get("blocks") or () if block["block"]]


def training_time(row: Record) -> float | None:
    """When the curve ends: what was reached then is known without reading between points."""
    return max((seconds for seconds, _ in _curve(row)), default=None)


def _range(timing: Record | None) -> tuple[float, float] | None:
    """The ends of what was measured repeatedly."""
    return (timing["low"], timing["high"]) if timing else None


def _speeds(row: Record) -> tuple[float, float] | None:
    """From the slower to the faster stretches of the training, or to its speed had it not had to wait."""
    whole, points = _at(row, "train", "tokens_per_second"), _at(row, "train", "curve") or ()
    found = [
        (b["tokens"] - a["tokens"]) / (b["seconds"] - a["seconds"])
        for a, b in pairwise(points)
        if b["seconds"] > a["seconds"]
    ]
    if whole is None or not found:
        return None
    low, high = band(found)
    least = _at(row, "train", "least_seconds")
    alone = whole * row["train"]["seconds"] / least if least else whole
    return min(low, whole), max(high, whole, alone)


def _in_time(row: Record, budget: float | None) -> tuple[float, float] | None:
    """The loss at ``budget`` seconds if the training ran at the slowest and the fastest of its speeds."""
    speeds = _speeds(row)
    if speeds is None or budget is None:
        return None
    whole, end = _at(row, "train", "tokens_per_second"), training_time(row)
    read = (_at_time(row, min(end or 0.0, budget * speed / whole)) for speed in speeds)
    found = [loss for loss in read if loss is not None]
    return (min(found), max(found)) if len(found) == len(speeds) else None


def _at_time(row: Record, budget: float | None) -> float | None:
    """Reads the curve at ``budget`` seconds, straight between points in the logarithm of time."""
    if budget is None:
        return None
    curve = _curve(row)
    if len(curve) == 1 and not row["learning_rate"]:  # what is not trained stays as it is
        return curve[0][1]
    for (t0, y0), (t1, y1) in pairwise(curve):
        if t0 <= budget <= t1 and t1 > t0:
            part = math.log(budget / t0) / math.log(t1 / t0) if t0 > 0 else budget / t1
            return y0 + part * (y1 - y0)
    return None


def _beyond(row: Record, window: int) -> float | None:
    """The mean loss at places behind the trained length."""
    far = [p for p in row.get("places") or () if p["from"] >= window and p["bits_per_byte"] is not None]
    total = sum(p["to"] - p["from"] for p in far)
    return sum(p["bits_per_byte"] * (p["to"] - p["from"]) for p in far) / total if total else None


def _curve(row: Record) -> list[tuple[float, float]]:
    points = _at(row, "train", "curve") or ()
    return [(p["seconds"], p["bits_per_byte"]) for p in points if p["bits_per_byte"] is not None]


def _at(record: dict[str, Any], *path: str) -> Any:
    """Returns what lies at the path, None where a step of it is missing."""
    for name in path:
        record = (record or {}).get(name)  # type: ignore[assignment]
    return record
