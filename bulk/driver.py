"""The loop of a bulk run: blocks to actors, shards to the manifest, until every block has its shard."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import ray

from bulk.manifest import Manifest, Shard
from bulk.plan import Block
from bulk.pool import Member, Pool, Task
from models.failures import DeviceLost

logger = logging.getLogger(__name__)

DEPTH = 2  # blocks that an actor has or waits for: the next is there when one is done
LOOK_S = 0.5  # between two looks at the progress
MAX_FAILURES = 2  # of a block; then it is computed one sequence at a time
MAX_SUSPICIONS = 2  # of a sequence; then it is poisoned
MAX_POISONED = 16  # sequences of a block; then something else is wrong


class RunFailed(Exception):
    """A shard cannot be made; those that are there stay, and --resume goes on."""


@dataclass
class Progress:
    """How far a run is. samples: (seconds, residues) at each shard of this run."""

    num_residues: int = 0  # done, in this run and before
    num_resumed: int = 0  # of those, before
    num_shards: int = 0
    num_deaths: int = 0
    actor_s: float = 0.0  # of all actors that were ready
    busy_s: float = 0.0
    utilisation: dict[int, float] = field(default_factory=dict)
    samples: list[tuple[float, int]] = field(default_factory=list)


class Driver:
    """Args:
    blocks: of the whole input, in order; those that the manifest has are skipped.
    show: is told how far the run is, now and then.
    """

    def __init__(
        self, blocks: Iterator[Block], manifest: Manifest, pool: Pool, show: Callable[[Progress], None]
    ) -> None:
        self._blocks = self._missing(blocks)
        self._manifest, self._pool, self._show = manifest, pool, show
        self._waiting: deque[Task] = deque()
        self._is_planned = False
        self._precision = next((shard.precision for shard in manifest.shards.values()), None)
        self.progress = Progress()

    def run(self) -> Progress:
        """Until every block has its shard.

        Raises:
            RunFailed, StartFailed: not every block can have one.
            ServiceError: the input cannot be read on.
        """
        started = time.monotonic()
        while True:
            self._plan_ahead()
            num_under_way = sum(len(member.tasks) for member in self._pool.members)
            if not self._waiting and not num_under_way:
                break
            self._pool.grow(len(self._waiting) + num_under_way)
            self._feed()
            self._let_go()
            for member, reference in self._pool.wait(LOOK_S):
                self._settle(member, reference, started)
            self._look()
        for member in list(self._pool.members):
            self._retire(member)
        return self.progress

    def _missing(self, blocks: Iterator[Block]) -> Iterator[Task]:
        for block in blocks:
            shard = self._manifest.shards.get(block.index)
            if shard is not None and shard.digest == block.digest:
                self._count(shard)
                self.progress.num_resumed = self.progress.num_residues
            else:
                yield Task(block)

    def _plan_ahead(self) -> None:
        """As many blocks wait as actors can take at once, the most that there may be."""
        wanted = DEPTH * self._pool.size.callers * self._pool.size.most
        wanted = min(wanted, 2 * DEPTH * self._pool.size.callers * max(1, len(self._pool.members)))
        if not self._is_planned and len(self._waiting) < wanted:
            new = list(islice(self._blocks, wanted - len(self._waiting)))
            self._is_planned = not new
            self._waiting.extend(new)

    def _feed(self) -> None:
        """One each in turn, so that none has two while another has none."""
        for depth in range(DEPTH * self._pool.size.callers):
            for member in self._pool.members:
                if self._waiting and member.is_ready and len(member.tasks) <= depth:
                    self._pool.give(member, self._waiting.popleft())

    def _let_go(self) -> None:
        if self._is_planned and not self._waiting:
            for member in [each for each in self._pool.members if not each.tasks]:
                self._retire(member)

    def _retire(self, member: Member) -> None:
        if member.since is not None:
            self.progress.actor_s += time.monotonic() - member.since
        self._pool.drop(member)

    def _settle(self, member: Member, reference: Any, started: float) -> None:
        if member not in self._pool.members:
            return  # it died with another task, and its tasks wait again
        task = member.tasks.get(reference)
        try:
            result = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            self._failed(member, reference, error)
        except ray.exceptions.RayError as error:
            self._died(member, error)
        else:
            if task is None:
                self._check_precision(result)
                self._pool.loaded(member)
                return
            del member.tasks[reference]
            member.busy_s += result.busy_s / self._pool.size.callers
            self.progress.busy_s += result.busy_s / self._pool.size.callers
            self._manifest.add(result)
            self._count(result)
            self.progress.samples.append((time.monotonic() - started, self.progress.num_residues))

    def _check_precision(self, precision: str) -> None:
        if self._precision is not None and precision != self._precision:
            raise RunFailed(f"an actor computes in {precision}, others in {self._precision}; give --precision")
        self._precision = precision

    def _count(self, shard: Shard) -> None:
        self.progress.num_shards += 1
        self.progress.num_residues += shard.num_letters

    def _failed(self, member: Member, reference: Any, error: Exception) -> None:
        """An error of the program: of this block, the disk, the device."""
        task = member.tasks.pop(reference, None)
        cause = getattr(error, "cause", None) or error
        if task is None or isinstance(cause, DeviceLost):
            self._died(member, error)
        if task is None:
            return
        task.num_failures += 1
        logger.warning("block %d failed: %s", task.block.index, cause)
        if task.num_failures > MAX_FAILURES:
            raise RunFailed(f"block {task.block.index} failed {task.num_failures} times: {cause}") from error
        self._waiting.appendleft(task)

    def _died(self, member: Member, error: Exception) -> None:
        """Its blocks wait again; the one that it was at is to blame, until it is seen to be another's fault."""
        logger.warning("actor %d died: %s", member.number, str(error).splitlines()[0])
        self.progress.num_deaths += 1
        if member.since is not None:
            self.progress.actor_s += time.monotonic() - member.since
        self.progress.utilisation.pop(member.number, None)
        tasks = self._pool.drop(member, error)
        at_work = [task for task in tasks if not self._pool.forget_written(task)]
        for task in at_work[: self._pool.size.callers]:
            self._blame(task)
        self._waiting.extendleft(reversed(tasks))

    def _blame(self, task: Task) -> None:
        task.num_failures += 1
        if task.is_careful and (place := self._pool.was_at(task)) is not None:
            task.suspects[place] = task.suspects.get(place, 0) + 1
            if task.suspects[place] >= MAX_SUSPICIONS:
                task.poisoned |= {place}
        elif task.num_failures > 2 * (MAX_FAILURES + MAX_POISONED * MAX_SUSPICIONS):
            raise RunFailed(f"actors die of block {task.block.index}, whatever is left out of it")
        if len(task.poisoned) > MAX_POISONED:
            raise RunFailed(f"actors die of more than {MAX_POISONED} sequences of block {task.block.index}")
        task.is_careful = task.num_failures > MAX_FAILURES

    def _look(self) -> None:
        now = time.monotonic()
        self.progress.utilisation |= {
            member.number: member.utilisation(now) for member in self._pool.members if member.is_ready
        }
        self._show(self.progress)
