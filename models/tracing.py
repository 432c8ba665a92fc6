"""What a runner adds to the trace of a request: its call, how long that waited, the batches in which it ran."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind

from models.batcher import Outcome

_tracer = trace.get_tracer("protein_embedding_service")


@contextmanager
def call_span(name: str, headers: Mapping[str, str], num_sequences: int) -> Iterator[Span]:
    """The runner's side of a call, below the gateway's span that the headers name."""
    with _tracer.start_as_current_span(
        name,
        context=propagate.extract(dict(headers)),
        kind=SpanKind.SERVER,
        attributes={"pes.sequences": num_sequences},
    ) as span:
        yield span


def trace_batches(outcomes: Iterable[Outcome[Any]]) -> None:
    """Spans of what is over: each batch that had a sequence of this call, and the wait before it."""
    if not trace.get_current_span().is_recording():
        return
    # The batcher has the event loop's clock, spans have the world's
    offset_ns = time.time_ns() - int(asyncio.get_running_loop().time() * 1e9)
    waits: dict[int, float] = {}
    batches = {}
    for outcome in outcomes:
        if outcome.batch is not None:
            key = id(outcome.batch)
            batches[key] = outcome.batch
            waits[key] = max(waits.get(key, 0.0), outcome.waited_s)
    for key, batch in batches.items():
        began_ns = int(batch.began * 1e9) + offset_ns
        wait = _tracer.start_span("batcher.queue", start_time=began_ns - int(waits[key] * 1e9))
        wait.end(began_ns)
        attributes = {
            "pes.device": batch.device,
            "pes.batch.sequences": batch.num_items,
            "pes.batch.cost": batch.cost,
        }
        ran = _tracer.start_span("batcher.batch", start_time=began_ns, attributes=attributes)
        ran.end(began_ns + int(batch.seconds * 1e9))
