"""What a benchmark leaves behind: a table for people, in Markdown so that it can be pasted, then one JSON line."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scripts.benchmarks.contenders import Task
from scripts.benchmarks.machine import describe


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with columns of even width; all but the first are set to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = cells
        padded = [first.ljust(widths[0]), *map(str.rjust, rest, widths[1:])]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(map(line, [header, rule, *rows]))


def write_line(figures: Mapping[str, Any], task: Task, path: Path | None) -> None:
    """The figures with model, commit, versions and machine, printed and into a file."""
    write_figures(figures, task.model.name, task.device, path)


def write_figures(figures: Mapping[str, Any], model: str, device: str, path: Path | None) -> None:
    """The same for a model that is not of the catalogue."""
    text = json.dumps({"model": model, **figures, **describe(device)})
    print(text)
    if path is not None:
        path.write_text(text + "\n")
