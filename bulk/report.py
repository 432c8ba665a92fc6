"""What is left beside the shards: the table of errors, the summary, the plot."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from bulk.driver import Progress
from bulk.folder import Folder
from bulk.manifest import Manifest
from bulk.plan import Failure
from bulk.survey import LENGTH_BIN, Survey

ERRORS, SUMMARY, PLOT = "errors.parquet", "summary.json", "plot.png"
_ROWS = 10_000


def summarise(
    manifest: Manifest, survey: Survey, progress: Progress, wall_s: float, price_per_hour: float | None
) -> dict[str, Any]:
    """The summary of a run.

    Args:
        price_per_hour: of an actor, in whatever currency.
    Returns:
        Fit for JSON. `padding_free_utilisation`: real tokens among those that went through the model; nothing is
        padded, so it is 1. `utilisation_with_padding`: what it had been, had the same batches been padded.
    """
    shards = manifest.shards.values()
    num_tokens, num_padded = (sum(getattr(each, name) for each in shards) for name in ("num_tokens", "num_padded"))
    num_new = progress.num_residues - progress.num_resumed
    num_ids = sum(shard.num_ids for shard in shards)
    hours = progress.actor_s / 3600
    return {
        "num_sequences": survey.num_sequences,
        "num_residues": survey.num_residues,
        "num_embedded": num_ids,
        "num_failed": survey.num_sequences - num_ids,
        "num_computed": sum(shard.num_sequences - shard.num_cached for shard in shards),
        "num_cached": sum(shard.num_cached for shard in shards),
        "num_shards": len(shards),
        "size_bytes": sum(shard.size_bytes for shard in shards),
        "precision": sorted({shard.precision for shard in shards}),
        "wall_s": round(wall_s, 2),
        "residues_of_this_run": num_new,
        "residues_per_s": round(num_new / wall_s) if wall_s else 0,
        "actor_hours": round(hours, 4),
        "actor_utilisation": round(progress.busy_s / progress.actor_s, 4) if progress.actor_s else 0.0,
        "actors_died": progress.num_deaths,
        "padding_free_utilisation": 1.0,
        "utilisation_with_padding": round(num_tokens / num_padded, 4) if num_padded else 1.0,
        "cost": None if price_per_hour is None else round(hours * price_per_hour, 4),
        "cost_per_million_sequences": None
        if price_per_hour is None or not num_new
        else round(hours * price_per_hour * 1e6 * survey.num_residues / num_new / survey.num_sequences, 4),
    }


def write_reports(
    folder: Folder, manifest: Manifest, survey: Survey, progress: Progress, summary: dict[str, Any]
) -> None:
    """Raises OSError: the output cannot be written."""
    folder.write(ERRORS, lambda path: _write_errors(path, manifest.failures()))
    folder.write(SUMMARY, lambda path: path.write_text(json.dumps(summary, indent=2) + "\n"))
    folder.write(PLOT, lambda path: _draw(path, survey, progress))


def _write_errors(path: Path, failures: Iterable[Failure]) -> None:
    """Columns id, length, error."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = pa.schema({"id": pa.string(), "length": pa.int64(), "error": pa.string()})
    left = iter(failures)
    with path.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
        while rows := list(islice(left, _ROWS)):
            ids = [row.id.encode("utf-8", "replace").decode() for row in rows]
            columns = [ids, [row.length for row in rows], [row.reason for row in rows]]
            writer.write_table(pa.table(columns, schema=schema))


def _draw(path: Path, survey: Survey, progress: Progress) -> None:
    """Lengths on the left, throughput of this run on the right."""
    from matplotlib.figure import Figure  # without pyplot, a figure needs no display

    figure = Figure(figsize=(10, 4), layout="constrained")
    lengths, rates = figure.subplots(1, 2)
    last = max(place for place, count in enumerate(survey.lengths) if count) + 1
    lengths.bar([LENGTH_BIN * (i + 0.5) for i in range(last)], survey.lengths[:last], width=LENGTH_BIN)
    lengths.set(xlabel="residues of a sequence", ylabel="sequences", title=f"{survey.num_sequences} sequences")
    moving = progress.samples[:: max(1, len(progress.samples) // 50)]
    steps = [(b[0], (b[1] - a[1]) / (b[0] - a[0])) for a, b in pairwise(moving) if b[0] > a[0]]
    rates.plot([at for at, _ in steps], [rate for _, rate in steps])
    rates.set(xlabel="s", ylabel="residues/s", title="throughput of this run", ylim=(0, None))
    figure.savefig(path, format="png", dpi=120)
