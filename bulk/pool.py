"""Ray's actors: as many as there is work for, replaced when they die, let go when nothing is left."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import ray

from bulk.folder import Folder
from bulk.manifest import Shard
from bulk.plan import Block
from bulk.shards import shard_name
from bulk.worker import ShardWriter
from bulk.workload import Worker, Workload

MAX_FAILED_STARTS = 3  # one after the other


class StartFailed(Exception):
    """Actors do not come up: the model cannot be loaded, say."""


@dataclass(frozen=True)
class PoolSize:
    """least: actors to begin with; most: to grow to while more work waits. cores, gpus: of each."""

    least: int
    most: int
    cores: float = 1
    gpus: float = 0

    @property
    def callers(self) -> int:
        """Blocks that an actor computes at a time: on a GPU one is read and written beside another."""
        return 2 if self.gpus else 1


@dataclass
class Task:
    """A block on its way to a shard. suspects: how often a process died at a place while it was computed alone."""

    block: Block
    num_failures: int = 0
    is_careful: bool = False
    suspects: dict[int, int] = field(default_factory=dict)
    poisoned: frozenset[int] = frozenset()


@dataclass
class Member:
    """An actor. tasks: under way, the oldest first, by reference of the result."""

    number: int
    actor: Any
    loading: Any
    since: float | None = None
    busy_s: float = 0.0
    tasks: dict[Any, Task] = field(default_factory=dict)

    @property
    def is_ready(self) -> bool:
        return self.since is not None

    def utilisation(self, now: float) -> float:
        """Share of the time since it was ready in which it has computed; several blocks at a time count as one."""
        return 0.0 if self.since is None else min(1.0, self.busy_s / max(1e-9, now - self.since))


class Writer(ShardWriter):
    """The actor."""

    def write_noting(self, block: Block, poisoned: frozenset[int], journal: Any) -> Shard:
        """One sequence at a time, the journal told of each before it is computed."""
        return self.write(block, poisoned, lambda place: ray.get(journal.note.remote(block.index, place)))


class Journal:
    """Outlives the actors: which sequence of a block is being computed."""

    def __init__(self) -> None:
        self._at: dict[int, int] = {}

    def note(self, block: int, place: int) -> None:
        self._at[block] = place

    def at(self, block: int) -> int | None:
        return self._at.pop(block, None)


class Pool:
    """Of one workload."""

    def __init__(
        self, workload: Workload, worker: Worker, output: str, size: PoolSize, kind: type[Writer] = Writer
    ) -> None:
        self.size = size
        self.members: list[Member] = []
        self.num_started = 0
        self._arguments = (workload, worker, output)
        self._failed_starts = 0
        self._journal: Any = None
        self._class: Any = ray.remote(kind)

    def grow(self, num_waiting: int) -> None:
        """Starts actors while blocks wait; no more than are there already at a time, so that they are all used."""
        num_loading = sum(not member.is_ready for member in self.members)
        room = max(self.size.least, 2 * (len(self.members) - num_loading)) - len(self.members)
        for _ in range(min(room, self.size.most - len(self.members), num_waiting - num_loading)):
            actor = self._class.options(
                num_cpus=self.size.cores,
                num_gpus=self.size.gpus,
                max_concurrency=self.size.callers,
                runtime_env={"env_vars": {"OMP_NUM_THREADS": str(max(1, int(self.size.cores)))}},
            ).remote(*self._arguments)
            self.members.append(Member(self.num_started, actor, actor.told_precision.remote()))
            self.num_started += 1

    def give(self, member: Member, task: Task) -> None:
        if task.is_careful:
            if self._journal is None:
                self._journal = ray.remote(Journal).options(num_cpus=0).remote()
            reference = member.actor.write_noting.remote(task.block, task.poisoned, self._journal)
        else:
            reference = member.actor.write.remote(task.block, task.poisoned)
        member.tasks[reference] = task

    def was_at(self, task: Task) -> int | None:
        """The place that a careful task had come to when its actor died."""
        place: int | None = ray.get(self._journal.at.remote(task.block.index)) if self._journal else None
        return place

    def forget_written(self, task: Task) -> bool:
        """Whether the task's shard is there, and only the answer was lost when its actor died. It is removed: it
        is to say nothing of the next attempt."""
        workload, _, output = self._arguments
        folder, name = Folder(output), shard_name(task.block.index, workload.form)
        if folder.size(name) is None:
            return False
        folder.remove(name)
        return True

    def wait(self, timeout_s: float) -> list[tuple[Member, Any]]:
        """References of what has ended, loading or a task, each with its member; of a member the oldest first, so
        that what it had done before it died is not taken for what it died of."""
        owners = {reference: member for member in self.members for reference in member.tasks}
        owners |= {member.loading: member for member in self.members if not member.is_ready}
        if not owners:
            return []
        done, _ = ray.wait(list(owners), num_returns=1, timeout=timeout_s)
        if done:
            done, _ = ray.wait(list(owners), num_returns=len(owners), timeout=0)
        ended = set(done)
        return [(member, reference) for reference, member in owners.items() if reference in ended]

    def loaded(self, member: Member) -> None:
        member.since = time.monotonic()
        self._failed_starts = 0

    def drop(self, member: Member, why: Exception | None = None) -> list[Task]:
        """Lets an actor go. Returns what it had not finished, the oldest first.

        Raises:
            StartFailed: it had not loaded its model, nor had those before it.
        """
        if member in self.members:
            self.members.remove(member)
        ray.kill(member.actor)
        if not member.is_ready and why is not None:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                raise StartFailed(f"{self._failed_starts} actors in a row did not start: {why}") from why
        return list(member.tasks.values())

    def close(self) -> None:
        for member in list(self.members):
            self.drop(member)
        if self._journal is not None:
            ray.kill(self._journal)
