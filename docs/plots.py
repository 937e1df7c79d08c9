"""Draws the plots of the ledger for the site, from its rows."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt

from nonet import learn, ledger, methods

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def drawn(folder: Path) -> str:
    """Draws the plot of every claim that has one; returns a section of the page with all of them."""
    titles = {method.name: method.title for method in methods()}
    rows = [row for row in ledger.newest(ledger.read_ledger(RESULTS)) if row["plot"]]
    rows.sort(key=lambda row: [*titles].index(row["method"]))
    if not rows:
        return ""
    folder.mkdir(exist_ok=True)
    parts = ["", "## Plots", ""]
    for row in rows:
        figure, axes = learn.canvas(5.6, 3.4)  # letters stay readable on a phone
        learn.draw_plot(axes, row["plot"], row["method"])
        file = folder / f"{row['method']}-{row['claim']}.svg"
        figure.savefig(file, format="svg", metadata={"Date": None, "Title": row["statement"]})
        plt.close(figure)
        parts += [f"**{titles[row['method']]}.** {row['statement']}", ""]
        parts += [f"![{row['plot']['y']} against {row['plot']['x']}]({folder.name}/{file.name})", ""]
    return "\n".join(parts)
