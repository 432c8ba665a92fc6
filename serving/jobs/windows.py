"""Windows of a job: so many sequences as are computed, written and noted together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from serving.errors import DeadlineExceeded, InferenceFailed, Overloaded, RunnerUnavailable
from serving.jobs.store import Entry
from serving.parts import Options
from serving.pipeline import MemorySink, Pipeline
from serving.runners import ServedModel, Terms
from serving.sequences import Protein
from serving.telemetry import span

PAUSE_S = 1.0  # while a runner is away
WINDOW_TIMEOUT_S = 3600.0
# A window is what is computed in so many seconds, within bounds of cost
WINDOW_S = 2.0
WINDOW_TOKENS = (16_384, 1_048_576)


class _Sink(MemorySink):
    """Counts the residues of what it was given."""

    def __init__(self, lengths: Sequence[int]) -> None:
        super().__init__()
        self._lengths = lengths
        self.num_residues = 0

    def add(self, index: int, embedding: np.ndarray) -> None:
        self.num_residues += 0 if index in self.embeddings else self._lengths[index]
        super().add(index, embedding)


@dataclass(frozen=True)
class _At:
    """Passes on to another sink, in which the i-th sequence has the i-th of these places."""

    places: Sequence[int]
    sink: MemorySink

    def add(self, index: int, embedding: np.ndarray) -> None:
        self.sink.add(self.places[index], embedding)


@dataclass
class Window:
    """Some sequences of a job, and what is known of them so far.

    first: index of the first of them in the job. behind: place in the job's input behind the last, in bytes.
    failed: by place in `entries`, why there is no embedding.
    """

    first: int
    entries: Sequence[Entry]
    behind: int
    failed: dict[int, str] = field(default_factory=dict)
    num_cached: int = 0
    precision: str = ""

    def __post_init__(self) -> None:
        self.sink = _Sink([entry.length for entry in self.entries])

    @property
    def next(self) -> int:
        """Index of the first sequence behind it."""
        return self.first + len(self.entries)

    @property
    def num_residues(self) -> int:
        """Of what is embedded."""
        return self.sink.num_residues

    @property
    def num_done(self) -> int:
        return len(self.sink.embeddings) + len(self.failed)

    def results(self) -> list[np.ndarray | Exception]:
        found = self.sink.embeddings
        return [found[i] if i in found else InferenceFailed(self.failed[i]) for i in range(len(self.entries))]


class Pace:
    """How much the next window may cost, by how long the last ones took; twice as much as the last one at most.

    Two are under way at the same time and are done soon after one another: only both together tell.

    Args:
        now: when the first is begun, in seconds by any clock.
    """

    def __init__(self, now: float) -> None:
        self.window_tokens = WINDOW_TOKENS[0]
        self._noted = deque([(now, 0)], maxlen=3)  # when, and the cost of all that was done then

    def note(self, cost: int, now: float) -> None:
        """A window of this cost is done."""
        self._noted.append((now, self._noted[-1][1] + cost))
        (begun, before), (_, done) = self._noted[0], self._noted[-1]
        most = min(WINDOW_TOKENS[1], 2 * self.window_tokens)
        tokens = (done - before) / (now - begun) * WINDOW_S if now > begun else most
        self.window_tokens = int(min(most, max(WINDOW_TOKENS[0], tokens)))


@dataclass(frozen=True)
class Embedder:
    """Embeds windows for a job, behind what people wait for.

    on_wait: is told why nothing goes on for a while.
    """

    pipeline: Pipeline
    served: ServedModel
    options: Options
    on_wait: Callable[[str], Awaitable[None]]

    async def embed(self, window: Window) -> None:
        """Every sequence of it has an embedding or a reason afterwards."""
        places = []
        for place, entry in enumerate(window.entries):
            if entry.sequence is None:
                window.failed[place] = entry.error or ""
            else:
                places.append(place)
        with span("job.window", {"pes.first": window.first, "pes.sequences": len(places)}):
            await self._embed(window, places)

    async def _embed(self, window: Window, places: Sequence[int]) -> None:
        """Where all of them fail together, halves are tried, down to single ones."""
        if not places:
            return
        proteins = [Protein(window.entries[i].id, window.entries[i].sequence or "") for i in places]
        while True:
            terms = Terms(asyncio.get_running_loop().time() + WINDOW_TIMEOUT_S, "bulk")
            sink = _At(places, window.sink)
            try:
                report = await self.pipeline.embed(self.served, proteins, self.options, sink, terms)
            except Overloaded as error:
                await asyncio.sleep(error.retry_after_s or PAUSE_S)
            except RunnerUnavailable as error:
                await self.on_wait(str(error))
                await asyncio.sleep(PAUSE_S)
            except (InferenceFailed, DeadlineExceeded) as error:
                if len(places) == 1:
                    window.failed[places[0]] = str(error)
                    return
                half = len(places) // 2
                await self._embed(window, places[:half])
                await self._embed(window, places[half:])
                return
            else:
                window.failed |= {places[i]: reason for i, reason in report.errors.items()}
                window.num_cached += sum(report.cached)
                window.precision = window.precision or report.precision
                return
