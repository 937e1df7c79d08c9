"""How each method is drawn: its colour in the report, in chapters and in the ledger, and a dash and shape.

None of the three is needed to tell a method from the others. A colour has a contrast of at least three to one
against a light page and a dark one, so that a picture may lie on either.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle

from nonet import registry
from nonet.compare.summary import Slot

# By the name of the method; "baseline" is what belongs to none.
COLOURS = {
    "flash": "#2b7fd4",
    "matmulfree": "#d2600f",
    "mamba": "#12966a",
    "tandem": "#8b6be0",
    "position": "#d04a6e",
    "prompt": "#7d8a12",
    "lora": "#1497a8",
    "reformer": "#b956ad",
    "linformer": "#b07a10",
    "baseline": "#7a7f86",
}
DASHES = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (4, 2), (12, 4), (1, 3), (6, 2, 2, 2))
# Outlines in a box from -1 to 1, for Vega and for the page's own legend.
SHAPES = (
    "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z",  # circle
    "M-.88,-.88H.88V.88H-.88Z",  # square
    "M0,-1.15L1.15,.9H-1.15Z",  # triangle
    "M0,-1.3L1.1,0L0,1.3L-1.1,0Z",  # diamond
    "M-.4,-1.1H.4V-.4H1.1V.4H.4V1.1H-.4V.4H-1.1V-.4H-.4Z",  # plus
    "M0,1.15L1.15,-.9H-1.15Z",  # triangle, turned over
    "M-1.1,-.95L-.95,-1.1L0,-.4L.95,-1.1L1.1,-.95L.4,0L1.1,.95L.95,1.1L0,.4L-.95,1.1L-1.1,.95L-.4,0Z",  # star
    "M-1.2,-.5H1.2V.5H-1.2Z",  # bar
)


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    colour: str
    dash: list[int]  # lengths of strokes and gaps
    shape: str  # an outline


def looks(slot: Slot) -> dict[str, Look]:
    """Returns entry's name -> look, by the method's place in the registry, whatever else is compared.

    What a method fills a slot with has the method's colour; where that is several, the first has it and the
    others have colours of methods that have no part in the slot, or the grey of what belongs to none.
    """
    parts = registry.parts(slot.name)
    names, owners = [part.name for part in parts], [_owner(part) for part in parts]
    strange = sorted(entry.name for entry in slot.entries if entry.name not in names)
    left = cycle([name for name in COLOURS if name not in owners])
    mine = {}
    for place, name in enumerate([*names, *strange]):
        first = place < len(owners) and owners[place] not in owners[:place]
        colour = COLOURS[owners[place] if first else next(left)]
        mine[name] = Look(colour, list(DASHES[place % len(DASHES)]), SHAPES[place % len(SHAPES)])
    return {entry.name: mine[entry.name] for entry in slot.entries}


def _owner(part: registry.Part) -> str:
    method = registry.method_of(part)
    return method.name if method else "baseline"
