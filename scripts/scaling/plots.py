"""A simulated day, and what a target costs, as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure  # without pyplot, a figure needs no display: it is drawn by Agg

from scripts.scaling.demand import Trace
from scripts.scaling.outcome import Outcome, percentile

BIN_S = 300.0


def draw_day(path: Path, trace: Trace, outcome: Outcome) -> None:
    """Requests a second, pods, and the 99th percentile of latency in every five minutes."""
    figure = Figure(figsize=(8, 6), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    edges = np.arange(0, outcome.horizon_s + BIN_S, BIN_S)
    hours = edges[:-1] / 3600
    panels[0].plot(hours, np.histogram(trace.arrivals, edges)[0] / BIN_S)
    panels[0].set_ylabel("requests/s")
    times, counts = zip(*outcome.pods.counts, (outcome.horizon_s, outcome.pods.counts[-1][1]), strict=True)
    panels[1].step(np.array(times) / 3600, counts, where="post")
    panels[1].set_ylabel("pods")
    places = np.digitize(outcome.answered_arrivals, edges) - 1
    worst = [percentile(outcome.latencies_s[places == place], 99) for place in range(len(hours))]
    panels[2].plot(hours, worst)
    panels[2].set_ylabel("latency p99, s")
    panels[2].set_yscale("log")
    panels[2].set_xlabel("hour of the day")
    for axes in panels:
        axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, format="png", dpi=90)


def draw_targets(path: Path, outcomes: Mapping[float, Outcome]) -> None:
    """Waits and pods by the target of the queue."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    targets = list(outcomes)
    for percent in (50, 99):
        waits = [percentile(outcome.waits_s, percent) for outcome in outcomes.values()]
        left.plot(targets, waits, marker="o", label=f"p{percent}")
    left.set_yscale("log")
    left.set_ylabel("wait, s")
    left.legend()
    right.plot(targets, [outcome.mean_pods for outcome in outcomes.values()], marker="o")
    right.set_ylabel("mean pods")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xticks(targets, [f"{target:g}" for target in targets])
        axes.minorticks_off()
        axes.set_xlabel("target of batcher_queue_size")
        axes.grid(visible=True, alpha=0.3)
    figure.savefig(path, format="png", dpi=90)
