"""The queue of jobs in Redis: who waits, who has which job and for how long, what came of each.

A worker holds a job by a lease, under a token of its own, and renews it while it works. What a worker writes is
taken only while its token holds: one that was slow, and whose job has gone to another, changes nothing. Every
script is atomic and may be sent twice. Nothing here expires in Redis: where memory is short, Redis evicts what
does (docs/decisions/0019-jobs.md).
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis.asyncio

from serving.errors import JobNotUnderstood, Overloaded, StoreUnavailable, UnknownJob
from serving.jobs import scripts
from serving.jobs.records import Job, Order, Progress, is_id
from serving.redis import JOB_PREFIX, JOBS_PREFIX, REDIS_ERRORS

logger = logging.getLogger(__name__)

MAX_LISTED_ERRORS = 1000  # of a job, that Redis keeps; its result names every one
REMEMBERED_S = 86_400  # for which a job whose result has expired is told from one that never was
RETRY_AFTER_S = 30.0  # jobs take a while


class LeaseLost(Exception):
    """The job is another worker's now, or was cancelled, or Redis has it at another place than the worker."""


@dataclass(frozen=True)
class Quota:
    """Of one owner: jobs that are queued or running, and sequences in them; one job may always be there."""

    max_jobs: int
    max_sequences: int


@dataclass(frozen=True)
class Depth:
    """Of one model: jobs that wait, for how many seconds the oldest has waited, and jobs that are worked on."""

    num_queued: int
    oldest_s: float
    num_running: int

    def __add__(self, other: Depth) -> Depth:
        return Depth(
            self.num_queued + other.num_queued,
            max(self.oldest_s, other.oldest_s),
            self.num_running + other.num_running,
        )


@dataclass(frozen=True)
class Lease:
    """A worker's hold on a job."""

    job: Job
    token: str


class JobQueue:
    """Jobs in one Redis, for any number of gateways and workers.

    Args:
        client: of Redis.
        lease_s: seconds after which a job goes to another worker if its own does not renew the lease.
        ttl_s: seconds that a job's result is kept.
    """

    def __init__(self, client: redis.asyncio.Redis, lease_s: float, ttl_s: float) -> None:
        self._client = client
        self._lease_s, self._ttl_s = lease_s, ttl_s
        register = client.register_script
        self._submit, self._take = register(scripts.SUBMIT), register(scripts.TAKE)
        self._cancel, self._renew = register(scripts.CANCEL), register(scripts.RENEW)
        self._advance, self._restart = register(scripts.ADVANCE), register(scripts.RESTART)
        self._end, self._hand_back = register(scripts.END), register(scripts.HAND_BACK)
        self._leave, self._forget = register(scripts.LEAVE), register(scripts.FORGET)

    async def submit(self, order: Order, quota: Quota, key: str) -> str:
        """Puts a job into the queue. key: the client's Idempotency-Key, or "".

        Returns:
            Its id, or that of the job that was submitted with the same key before.
        Raises:
            Overloaded: the owner's quota is reached.
            StoreUnavailable: Redis does not answer.
        """
        keys = [
            _job(order.id),
            _queued(order.model),
            _of("active", order.owner),
            _of("mine", order.owner),
            _of("keys", order.owner),
        ]
        limits = [quota.max_jobs, quota.max_sequences, order.num_sequences]
        fields = _flat(order.to_fields() | Progress().to_fields())
        outcome, found = await _ask(self._submit(keys=keys, args=[JOB_PREFIX, order.id, key, *limits, *fields]))
        match outcome.decode():
            case "jobs":
                raise Overloaded(f"{int(found)} jobs of yours are queued or running", RETRY_AFTER_S)
            case "sequences":
                raise Overloaded(
                    f"with these, {int(found)} sequences of yours would be queued or running; the most is "
                    f"{quota.max_sequences}",
                    RETRY_AFTER_S,
                )
        job_id: str = found.decode()
        return job_id

    async def check(self) -> None:
        """
        Raises:
            StoreUnavailable: Redis does not answer.
        """
        await _ask(cast(Awaitable[Any], self._client.ping()))

    async def find_key(self, owner: str, key: str) -> str | None:
        """The job that was submitted with this Idempotency-Key."""
        found = await _ask(cast(Awaitable[Any], self._client.hget(_of("keys", owner), key)))
        return None if found is None else found.decode()

    async def get(self, job_id: str, owner: str | None = None) -> Job:
        """
        Raises:
            UnknownJob: there is none, or none of this owner's.
            JobNotUnderstood: another version of the service wrote it.
            StoreUnavailable: Redis does not answer.
        """
        if not is_id(job_id):  # `{id}:parts` is a key too
            raise UnknownJob("no such job")
        job: Job = await _ask(self._read(job_id, owner))
        return job

    async def _read(self, job_id: str, owner: str | None = None) -> Job:
        record = await cast(Awaitable[Any], self._client.hgetall(_job(job_id)))
        if not record or (owner is not None and record.get(b"owner") != owner.encode()):
            raise UnknownJob("no such job")
        return _understood(job_id, record)

    async def errors(self, job_id: str, most: int) -> dict[int, str]:
        """The first errors of a job by the index of the sequence, of the MAX_LISTED_ERRORS that are kept."""
        found = await _ask(cast(Awaitable[Any], self._client.hgetall(_errors(job_id))))
        return dict(sorted((int(index), reason.decode()) for index, reason in found.items())[:most])

    async def list(self, owner: str, start: int, count: int) -> tuple[int, Sequence[Job]]:
        """How many jobs an owner has, and some, the latest first; those of another version are left out."""
        pipeline = self._client.pipeline(transaction=False)
        pipeline.zcard(_of("mine", owner))
        pipeline.zrevrange(_of("mine", owner), start, start + count - 1)
        total, ids = await _ask(pipeline.execute())
        pipeline = self._client.pipeline(transaction=False)
        for job_id in ids:
            pipeline.hgetall(_job(job_id.decode()))
        records = await _ask(pipeline.execute())
        found = zip(ids, records, strict=True)
        jobs: list[Job] = []
        for job_id, record in found:
            if record:
                with contextlib.suppress(JobNotUnderstood):
                    jobs.append(_understood(job_id.decode(), record))
        return total, jobs

    async def cancel(self, job: Job) -> bool:
        """Ends a job that is queued or running; its worker finds its lease lost. Whether it was one."""
        order = job.order
        keys = [
            _job(job.id),
            _queued(order.model),
            _leased(order.model),
            _of("active", order.owner),
            _ENDED,
            _parts(job.id),
        ]
        return bool(await _ask(self._cancel(keys=keys, args=[job.id, self._ttl_s])))

    async def take(self, models: Sequence[str], token: str) -> Lease | None:
        """A job of one of these models: one whose worker has vanished, else the one that waits longest.

        Raises:
            redis.RedisError, OSError: Redis does not answer. A job that was taken all the same goes on when its
                lease lapses.
            JobNotUnderstood: another version may, when the lease lapses.
        """
        keys = [key for model in models for key in (_queued(model), _leased(model))]
        found = await self._take(keys=keys, args=[JOB_PREFIX, token, self._lease_s])
        if not found:
            return None
        job_id = found.decode()
        try:
            return Lease(await self._read(job_id), token)
        except UnknownJob:
            return None
        except JobNotUnderstood:
            await self._leave(keys=[_job(job_id)], args=[token])
            raise

    async def renew(self, lease: Lease, **fields: str | int) -> None:
        """
        Raises:
            LeaseLost; redis.RedisError, OSError: Redis does not answer; so of all below.
        """
        await self._as_holder(self._renew, lease, [_leased(lease.job.order.model)], self._lease_s, fields)

    async def advance(
        self,
        lease: Lease,
        place: int,
        part: str,
        to: Progress,
        errors: Mapping[int, str],
        live: Mapping[str, int] | None = None,
    ) -> None:
        """The sequences from `place` on are done with, for good; their embeddings are in `part`.

        live: live_sequences and live_residues of what is under way behind them.
        """
        job = lease.job
        keys = [_leased(job.order.model), _parts(job.id), _errors(job.id)]
        num_before = to.num_failed - len(errors)
        kept = {str(index): errors[index] for index in sorted(errors)[: max(0, MAX_LISTED_ERRORS - num_before)]}
        head = [self._lease_s, part, place, to.next, json.dumps(kept)]
        fields = {"live_sequences": 0, "live_residues": 0} | to.to_fields() | dict(live or {})
        await self._call(self._advance, lease, keys, [job.id, *head, *_flat(fields)])

    async def restart(self, lease: Lease, tag: str) -> None:
        """The job begins anew, with other weights."""
        keys = [_parts(lease.job.id), _errors(lease.job.id)]
        await self._call(self._restart, lease, keys, _flat({"tag": tag} | Progress().to_fields()))

    async def end(self, lease: Lease, **fields: str | int) -> None:
        """The job is over; the fields say how."""
        order = lease.job.order
        keys = [_leased(order.model), _of("active", order.owner), _ENDED, _parts(lease.job.id)]
        await self._call(self._end, lease, keys, [lease.job.id, self._ttl_s, *_flat(fields)])

    async def hand_back(self, lease: Lease) -> None:
        """The job waits again, at its old place, for any worker."""
        model = lease.job.order.model
        await self._call(self._hand_back, lease, [_leased(model), _queued(model)], [lease.job.id])

    async def outcome(self, job_id: str) -> tuple[str, str]:
        """The state of a job and the name of its result; "" where there is none."""
        found = await cast(Awaitable[Any], self._client.hmget(_job(job_id), ["state", "result"]))
        state, result = ((value or b"").decode() for value in found)
        return state, result

    async def parts(self, job_id: str) -> Sequence[str]:
        """Names of the parts of a job's result, in order."""
        found = await cast(Awaitable[Any], self._client.lrange(_parts(job_id), 0, -1))
        return [name.decode() for name in found]

    async def depth(self, model: str) -> Depth:
        pipeline = self._client.pipeline(transaction=False)
        pipeline.zcard(_queued(model))
        pipeline.zrange(_queued(model), 0, 0, withscores=True)
        pipeline.zcard(_leased(model))
        num_queued, oldest, num_running = await pipeline.execute()
        return Depth(num_queued, max(0.0, time.time() - oldest[0][1]) if oldest else 0.0, num_running)

    async def expired(self) -> Sequence[str]:
        """Jobs whose results are to be deleted."""
        seconds, microseconds = await self._client.time()
        found: list[Any] = await self._client.zrangebyscore(_ENDED, 0, seconds + microseconds / 1e6)
        return [job_id.decode() for job_id in found]

    async def forget(self, job_id: str) -> None:
        """The result of a job was deleted. The second time, a while later, the job is forgotten altogether."""
        keys = [_job(job_id), _errors(job_id), _parts(job_id), _ENDED]
        await self._forget(keys=keys, args=[job_id, REMEMBERED_S, _of("mine", ""), _of("keys", "")])

    async def known(self, job_ids: Sequence[str]) -> set[str]:
        """Those of the ids that are jobs."""
        pipeline = self._client.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.exists(_job(job_id))
        return {job_id for job_id, is_there in zip(job_ids, await pipeline.execute(), strict=True) if is_there}

    async def _as_holder(
        self, script: Any, lease: Lease, keys: Sequence[str], lease_s: float, fields: Mapping[str, str | int]
    ) -> None:
        await self._call(script, lease, keys, [lease.job.id, lease_s, *_flat(fields)])

    async def _call(self, script: Any, lease: Lease, keys: Sequence[str], args: Sequence[Any]) -> None:
        if not await script(keys=[_job(lease.job.id), *keys], args=[lease.token, *args]):
            raise LeaseLost(lease.job.id)


_ENDED = f"{JOBS_PREFIX}ended"


def _understood(job_id: str, record: Mapping[bytes, bytes]) -> Job:
    try:
        return Job.from_hash(job_id, record)
    except ValueError as error:
        logger.warning("job %s is not understood: %s", job_id, error)
        raise JobNotUnderstood("the job is of another version of the service; that one can tell of it") from error


def _job(job_id: str) -> str:
    return JOB_PREFIX + job_id


def _parts(job_id: str) -> str:
    return f"{JOB_PREFIX}{job_id}:parts"


def _errors(job_id: str) -> str:
    return f"{JOB_PREFIX}{job_id}:errors"


def _queued(model: str) -> str:
    return f"{JOBS_PREFIX}queued:{model}"


def _leased(model: str) -> str:
    return f"{JOBS_PREFIX}leased:{model}"


def _of(what: str, owner: str) -> str:
    return f"{JOBS_PREFIX}{what}:{owner}"


def _flat(fields: Mapping[str, str | int]) -> Sequence[str | int]:
    return [part for pair in fields.items() for part in pair]


async def _ask(answer: Awaitable[Any]) -> Any:
    try:
        return await answer
    except REDIS_ERRORS as error:
        raise StoreUnavailable("Redis does not answer, and jobs are kept there") from error
