"""The plots of a report as Vega-Lite specifications, in the plain values that Vega-Lite documents."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nonet.compare import units
from nonet.compare.axes import Spec, x_axis, y_axis
from nonet.compare.crossover import Point
from nonet.compare.looks import looks
from nonet.compare.quantities import QUANTITIES, Quantity, Say
from nonet.compare.spread import Estimate
from nonet.compare.store import Record
from nonet.compare.summary import Entry, Slot


@dataclass(frozen=True)
class Plot:
    """A specification with the words around it."""

    title: str
    note: str
    spec: Spec


def slot_plots(slot: Slot, plan: Record) -> list[Plot]:
    """Returns the plots of a slot, without those for which nothing was measured."""
    drawn = [_final(slot), *(_series(slot, quantity, plan["window"]) for quantity in QUANTITIES)]
    return [plot for plot in drawn if plot]


def recall_plots(slot: Slot) -> list[Plot]:
    """Returns one plot a task: accuracy against length, with the accuracy of guessing."""
    return [_recall(slot, task) for task in dict.fromkeys(task for task, _ in slot.chance)]


def _recall(slot: Slot, task: str) -> Plot:
    records = [
        _record(
            entry, Point(length, found.mean, min(found.values), max(found.values)), units.count, units.share
        )
        for entry in slot.entries
        for (name, length), found in sorted(entry.recall.items(), key=lambda item: item[0][1])
        if name == task
    ]
    lengths = sorted({record["x"] for record in records})
    chance = next((c for (name, _), c in slot.chance.items() if name == task and c is not None), None)
    title, note = task.replace("_", " ").capitalize(), "Higher is better."
    if any(record["low"] != record["high"] for record in records):
        note += " Bars and bands span the seeds."
    if chance is not None:
        note += f" Dotted: guessing finds {units.share(chance)}."
    accuracy = {"title": "accuracy", "scale": {"domain": [0, 1]}}
    axis = {"format": ".0%", "tickCount": 5, "grid": True}
    if len(lengths) == 1:
        records = [{**record, "x": record["y"]} for record in records]
        title += f" at {units.count(lengths[0])} tokens"
        return Plot(title, note, _dots(slot, records, title, {**accuracy, "axis": axis}, chance))
    x = {"title": "tokens of context", "type": "ordinal", "axis": {"labelAngle": 0, "format": ",d"}}
    return Plot(title, note, _lines(slot, records, title, x, {**accuracy, "axis": axis}, {"y": chance}))


def _final(slot: Slot) -> Plot | None:
    """Where every method ended, at equal tokens and at equal time."""
    ranked = sorted(slot.entries, key=lambda entry: entry.number("quality") or math.inf)
    views = {"quality": "equal tokens", "timed": "equal time"}
    found = [(e, view, e.numbers[name]) for e in ranked for name, view in views.items()]
    records = [_final_record(entry, view, value) for entry, view, value in found if value]
    if not records:
        return None
    x = {
        "title": "bits per byte",
        "scale": {"zero": False, "padding": 12},
        "axis": {"grid": True, "tickCount": 6},
    }
    title = "Loss at the end"
    note = "Filled: at equal tokens. Hollow: at equal time. Lower is better; bars are 95 % intervals."
    return Plot(title, note, _dots(slot, records, title, x, None))


def _final_record(entry: Entry, view: str, found: Estimate) -> dict[str, Any]:
    half = found.half or 0.0
    return {
        "method": entry.title,
        "at": view,
        "hollow": view == "equal time",
        "x": found.mean,
        "low": found.mean - half,
        "high": found.mean + half,
        "value": units.bits_of(found),
    }


def _dots(slot: Slot, records: list[dict[str, Any]], title: str, x: Spec, rule: float | None) -> Spec:
    """A line a method with a point and its interval; two points where ``at`` tells two apart."""
    names = list(dict.fromkeys(record["method"] for record in records))
    views = list(dict.fromkeys(record["at"] for record in records))
    colour = _by_method(slot, names, "colour")
    across = {"type": "quantitative", **x}
    methods = {
        "encoding": {
            "y": {"field": "method", "type": "nominal", "title": None, "sort": names},
            "yOffset": {"field": "at", "type": "nominal", "sort": views},
            "color": colour,
            "opacity": _strength(1),
        },
        "layer": [
            {
                "mark": {"type": "rule", "strokeWidth": 2},
                "encoding": {"x": {"field": "low", **across}, "x2": {"field": "high"}},
            },
            {
                "mark": {"type": "point", "size": 70, "opacity": 1},
                "encoding": {
                    "x": {"field": "x", **across},
                    "shape": _by_method(slot, names, "shape"),
                    "fill": {**colour, "condition": {"test": "datum.hollow", "value": "var(--card)"}},
                    "tooltip": _tooltip({"at": "at", "value": x["title"]}),
                },
            },
        ],
    }
    height = max(18 * len(views), 26) * len(names)
    return _plot(
        title, {"height": height, "data": {"values": records}, "layer": [*_rules({"x": rule}), methods]}
    )


def _rules(values: dict[str, float | None]) -> list[Spec]:
    mark = {"type": "rule", "strokeDash": [1, 4], "color": "var(--ink)"}
    return [
        {"data": {"values": [{}]}, "mark": mark, "encoding": {channel: {"datum": value}}}
        for channel, value in values.items()
        if value is not None
    ]


def _series(slot: Slot, quantity: Quantity, window: int) -> Plot | None:
    records = [
        _record(entry, point, quantity.say_along, quantity.say)
        for entry in slot.entries
        for point in entry.series[quantity.series]
        # The untrained model's loss would flatten all that follows; a logarithm has no zero.
        if (point.y > 0 or quantity.kind == "share") and (point.x > 0 or quantity.kind == "place")
    ]
    if not records or (quantity.kind in ("time", "memory") and len({r["x"] for r in records}) == 1):
        return None  # one length shows no growth, and its number stands in the tables
    note = quantity.note
    rule: dict[str, float | None] = {}
    if quantity.series == "seconds" and slot.budget:
        rule, note = (
            {"x": slot.budget},
            f"{note} Dotted: {units.seconds(slot.budget)}, when the fastest ends.",
        )
    elif quantity.kind == "place":
        rule, note = {"x": window}, f"{note} Dotted: the trained length, {units.count(window)}."
    elif quantity.kind == "ratio":
        rule, note = {"y": 1.0}, f"{note} Dotted: the primary alone."
    spec = _lines(slot, records, quantity.title, x_axis(quantity, records), y_axis(quantity, records), rule)
    return Plot(quantity.title, note, spec)


def _record(entry: Entry, point: Point, say_along: Say, say: Say) -> dict[str, Any]:
    words = say(point.y)
    if point.low != point.high:
        words += f" ({say(point.low)} to {say(point.high)})"
    place = {"x": point.x, "y": point.y, "low": point.low, "high": point.high}
    return {"method": entry.title, **place, "at": say_along(point.x), "value": words}


def _lines(
    slot: Slot,
    records: list[dict[str, Any]],
    title: str,
    x: Spec,
    y: Spec,
    rule: dict[str, float | None],
) -> Spec:
    """A band, a line and points for every method, and a dotted rule where ``rule`` says."""
    names = list(dict.fromkeys(record["method"] for record in records))
    tooltip = _tooltip({"at": x["title"], "value": y["title"]})
    methods = {
        "encoding": {
            "x": {"field": "x", "type": "quantitative", **x},
            "y": {"field": "y", "type": "quantitative", **y},
            "color": _by_method(slot, names, "colour"),
        },
        "layer": [
            {
                "mark": "area",
                "encoding": {"y": {"field": "low"}, "y2": {"field": "high"}, "opacity": _strength(0.16)},
            },
            {
                "mark": {"type": "line", "strokeWidth": 2},
                "encoding": {"strokeDash": _by_method(slot, names, "dash"), "opacity": _strength(1)},
            },
            {
                "mark": {"type": "point", "size": 50, "filled": True},
                "encoding": {
                    "shape": _by_method(slot, names, "shape"),
                    "opacity": _strength(1),
                    "tooltip": tooltip,
                },
            },
        ],
    }
    return _plot(title, {"height": 250, "data": {"values": records}, "layer": [*_rules(rule), methods]})


def _by_method(slot: Slot, names: Sequence[str], aspect: str) -> Spec:
    drawn = {entry.title: look for entry, look in zip(slot.entries, looks(slot).values(), strict=True)}
    scale = {"domain": list(names), "range": [getattr(drawn[name], aspect) for name in names]}
    return {"field": "method", "type": "nominal", "legend": None, "scale": scale}


def _strength(opacity: float) -> Spec:
    """Fades what is not picked in the page's legend."""
    mine = {"test": "picked == '' || datum.method == picked", "value": opacity}
    return {"condition": mine, "value": opacity / 8}


def _tooltip(fields: dict[str, str]) -> list[Spec]:
    return [
        {"field": name, "type": "nominal", "title": title}
        for name, title in {"method": "method", **fields}.items()
    ]


def _plot(title: str, spec: Spec) -> Spec:
    """Adds what all plots share."""
    return {
        "description": title,
        "width": "container",
        "autosize": {"type": "fit-x", "contains": "padding"},
        "params": [{"name": "picked", "value": ""}],
        **spec,
    }
