"""Both curves as a PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from matplotlib.figure import Figure  # without pyplot, a figure needs no display: it is drawn by Agg


def draw(path: Path, title: str, by_length: Mapping[int, float], by_budget: Mapping[int, float]) -> None:
    """Residues per second by residues of a sequence, and by tokens of a batch."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, 2, sharey=True)
    labels = ("residues of a sequence", "tokens of a batch")
    for axes, label, curve in zip(panels, labels, (by_length, by_budget), strict=True):
        axes.plot(list(curve), list(curve.values()), marker="o", color="tab:blue")
        axes.set_xscale("log")
        axes.set_xticks(list(curve), [f"{place:,}" for place in curve], rotation=45)
        axes.minorticks_off()
        axes.set_xlabel(label)
        axes.grid(visible=True, alpha=0.3)
    panels[0].set_ylabel("residues per second")
    panels[0].set_ylim(bottom=0)
    panels[0].yaxis.set_major_formatter("{x:,.0f}")
    figure.savefig(path, format="png", dpi=120)
