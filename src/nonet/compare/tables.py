"""The tables of a report as plain cells, for the page and for the terminal."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nonet.compare import units
from nonet.compare.advice import advise
from nonet.compare.columns import ONE_SEED, Item, columns, note, standing
from nonet.compare.quantities import QUANTITIES, Quantity
from nonet.compare.spread import Estimate
from nonet.compare.store import Record, finished
from nonet.compare.summary import CROSSING, REFERENCE, Slot, seeds_run, summarise
from nonet.compare.verdict import Advice

_CROSSING = (
    "From how many tokens of context on each costs less, and its share of the cost at the longest length. "
    "Level: the two costs differ by no more than their spread."
)


@dataclass(frozen=True)
class Sheet:
    """A table: the columns' heads, for each entry its name and an item a column, and how to read it."""

    columns: tuple[Item, ...]
    rows: tuple[tuple[str, tuple[Item, ...]], ...]
    note: str = ""


def main_sheet(slot: Slot, advice: Advice, plan: Record) -> Sheet:
    """Returns one line an entry, with what matters in the slot."""
    shown = columns(slot, advice, plan)
    rows = ((e.name, (Item(e.title, standing(e)), *(c.item(e) for c in shown))) for e in slot.entries)
    return Sheet((Item("Method"), *(c.head for c in shown)), tuple(rows), note(slot))


def crossing_sheet(slot: Slot) -> Sheet | None:
    """Returns where each mixer becomes cheaper than exact attention, None where it cannot be told."""
    if not slot.crossings:
        return None
    heads = ("Forward pass", "Forward and backward", "One more token", "Size of the cache")
    head = (Item(f"Cheaper than {slot.title(REFERENCE)}"), *(Item(head) for head in heads))
    rows = []
    for name, crossings in slot.crossings.items():
        items = [Item(slot.title(name))]
        for quantity in CROSSING:
            found = crossings[quantity]
            if found is None:
                items.append(Item(units.DASH))
                continue
            ratio = f"{units.times(found.ratio)} at {units.count(found.longest)}"
            items.append(Item(str(found), f"{ratio}, within the spread" if found.kind == "level" else ratio))
        rows.append((name, tuple(items)))
    return Sheet(head, tuple(rows), _CROSSING)


def number_sheets(slot: Slot) -> list[tuple[str, Sheet]]:
    """Returns every number of the plots, under its title: a line an entry, a column a place on the axis."""
    # No two methods have a time or a number of parameters in common; other tables hold these losses.
    shown = (quantity for quantity in QUANTITIES if quantity.series not in ("seconds", "trained"))
    return [(q.title, _numbers(slot, q)) for q in shown if any(e.series[q.series] for e in slot.entries)]


def _numbers(slot: Slot, quantity: Quantity) -> Sheet:
    series = {entry.name: {p.x: p.y for p in entry.series[quantity.series]} for entry in slot.entries}
    places = sorted({x for found in series.values() for x in found})
    heads = (Item(quantity.along.capitalize()), *(Item(quantity.say_along(x)) for x in places))
    rows = (
        (e.name, (Item(e.title), *(Item(quantity.say(series[e.name].get(x))) for x in places)))
        for e in slot.entries
    )
    return Sheet(heads, tuple(rows))


def recall_sheet(slot: Slot) -> Sheet | None:
    """Returns the accuracy of every task, None when none was run."""
    if not slot.chance:
        return None
    heads = (Item("Task"), *(Item(t.replace("_", " "), f"{units.count(n)} tokens") for t, n in slot.chance))
    rows = [
        (e.name, (Item(e.title), *(_accuracy(e.recall.get(key)) for key in slot.chance)))
        for e in slot.entries
    ]
    chances = (Item(units.share(chance)) for chance in slot.chance.values())
    return Sheet(heads, (*rows, ("", (Item("Guessing"), *chances))))


def _accuracy(found: Estimate | None) -> Item:
    if found is None:
        return Item(units.DASH)
    return Item(
        units.share(found.mean), "" if found.half is None else f"±{units.GAP}{units.share(found.half)}"
    )


def settings_sheet(slot: Slot) -> Sheet:
    """Returns what each entry was run with: learning rate, options, and the implementation of every op."""
    options = any((entry.sample or {}).get("settings") for entry in slot.entries)
    heads = ("Method", "Learning rate", *(["Options"] if options else []), "Implementations")
    rows = []
    for entry in slot.entries:
        sample = entry.sample or {}
        rate = sample.get("learning_rate")
        words = [f"{rate:g}" if rate else ""]
        if options:
            given = sample.get("settings") or {}
            words.append(", ".join(f"{name} {value}" for name, value in given.items() if value))
        chosen = sample.get("implementations") or {}
        words.append("; ".join(f"{op}: {c['name']} ({c['reason']})" for op, c in chosen.items()))
        rows.append((entry.name, (Item(entry.title), *(Item(word or units.DASH) for word in words))))
    return Sheet(tuple(Item(head) for head in heads), tuple(rows))


def text_tables(plan: Record, rows: Iterable[Record]) -> list[RenderableType]:
    """Returns for the terminal a compact table a slot, each with its recommendation."""
    rows = list(rows)
    seeds = len(seeds_run(plan, rows))
    return [_text_table(slot, advise(slot, plan), plan, seeds) for slot in summarise(plan, rows)]


def document(plan: Record, rows: Iterable[Record], *, full: bool = False) -> str:
    """Returns as Markdown a table a slot with its recommendation, and on which machine it was made.

    Args:
        plan: of the comparison.
        rows: its rows.
        full: with every number of the plots, too.
    """
    rows, parts = list(rows), []
    for slot in summarise(plan, rows):
        advice = advise(slot, plan)
        sheet = main_sheet(slot, advice, plan)
        title = f"**{slot.name.capitalize()}: {slot.question}**"
        parts += [title, _markdown(sheet), f"{sheet.note} {advice.choice} {advice.reason}"]
        for about, numbers in number_sheets(slot) if full else ():
            parts += [about, _markdown(numbers)]
    return "\n\n".join([*parts, _origin(plan, rows)])


def _markdown(sheet: Sheet) -> str:
    lines = [[_cell(item) for item in sheet.columns], ["---"] * len(sheet.columns)]
    lines += [[_cell(item) for item in items] for _, items in sheet.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(item: Item) -> str:
    text = item.text.replace("|", "/")
    return f"{f'**{text}**' if item.best else text}{f' ({item.small})' if item.small else ''}"


def _origin(plan: Record, rows: Iterable[Record]) -> str:
    """Returns on which text and machine, with which versions, and by which command rows are made."""
    done, seeds = list(finished(rows).values()), seeds_run(plan, rows)
    dates = sorted({row["started"][:10] for row in done}) or [plan["created"][:10]]
    made = [row["provenance"] for row in done] or [plan["environment"]]
    places = sorted({f"{p['gpu'] or p['cpu']} with {p['threads']} of {p['cores']} cores" for p in made})
    names = ("nonet", "torch", "transformers", "python")
    versions = sorted({", ".join(f"{name} {p[name]}" for name in names) for p in made})
    commits = sorted({p["commit"][:10] for p in made if p["commit"]})
    changed = ", with changes" if any(p["dirty"] for p in made) else ""
    plural = {True: "s", False: ""}
    commit = f"; commit{plural[len(commits) > 1]} {units.listed(commits)}{changed}" if commits else ""
    return (
        f"{units.count(plan['tokens'])} training tokens a model of {plan['corpus']['name']}, "
        f"seed{plural[len(seeds) > 1]} {', '.join(map(str, seeds))}, on {' and '.join(places)}, "
        f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}; {'; '.join(versions)}{commit}. "
        f"Again by `{plan['command']}`."
    )


def _text_table(slot: Slot, advice: Advice, plan: Record, number: int) -> RenderableType:
    """The columns that fit into 80 characters."""
    tokens, time = units.count(plan["tokens"]), units.seconds(slot.budget)
    seeds = ONE_SEED if number == 1 else f"{number} seeds"
    learned = f"Bits per byte after {tokens} tokens and {time}, {seeds}. Bold: none is better."
    written = f"After {tokens} tokens of training, {seeds}. Bold: what is recommended."
    table = Table(
        title=Text(f"{slot.name.capitalize()}: {slot.question}", style="bold"),
        title_justify="left",
        caption=Text(written if slot.name == "pairing" else learned),
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    shown = [column for column in columns(slot, advice, plan) if column.short]
    table.add_column("method")
    for column in shown:
        table.add_column(column.short, justify="right")
    for entry in slot.entries:
        name = Text(f"{entry.title} {standing(entry)}".strip())
        table.add_row(name, *(_text(column.item(entry)) for column in shown))
    return Group(table, Text(f"{advice.choice} {advice.reason}"), Text(""))


def _text(item: Item) -> Text:
    small = f" {item.small}" if item.small.startswith("±") else ""
    return Text(f"{item.text}{small}", style="bold" if item.best else "")
