"""Takes jobs from the queue, one at a time, and holds each by its lease while it is worked on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Mapping

from serving.errors import JobNotUnderstood
from serving.jobs.measures import Measures
from serving.jobs.queue import JobQueue, Lease, LeaseLost
from serving.jobs.run import Run
from serving.jobs.store import JobStore
from serving.pipeline import Pipeline
from serving.redis import REDIS_ERRORS
from serving.runners import ServedModel
from serving.tasks import apart, end, finish

logger = logging.getLogger(__name__)

POLL_S = 0.25  # for a job, and for whether one's own job was cancelled
PAUSE_S = 1.0  # while Redis is away


class JobWorker:
    """One slot of a worker process: one job at a time.

    Args:
        served: the models that run here, by name; only their jobs are taken.
    """

    def __init__(
        self,
        queue: JobQueue,
        store: JobStore,
        pipeline: Pipeline,
        served: Mapping[str, ServedModel],
        measures: Measures,
    ) -> None:
        self._queue, self._store, self._pipeline = queue, store, pipeline
        self._served, self._measures = served, measures

    async def run(self) -> None:
        """For ever. Cancelled, it hands back the job that it has."""
        while True:
            taking = asyncio.create_task(self._queue.take(list(self._served), secrets.token_hex(8)))
            try:
                lease = await finish(taking)
            except asyncio.CancelledError:
                if taking.exception() is None and (lease := taking.result()) is not None:
                    await self._hand_back(lease)
                raise
            except REDIS_ERRORS as error:
                logger.warning("no job can be taken: %s", error)
                await asyncio.sleep(PAUSE_S)
                continue
            except JobNotUnderstood:
                logger.exception("a job is left alone: another version of the service may understand it")
                continue
            if lease is None:
                await asyncio.sleep(POLL_S)
            else:
                await self._hold(lease)

    async def _hold(self, lease: Lease) -> None:
        """Works on a job while its lease is renewed; ends with the job, with the lease, or with this worker."""
        served = self._served[lease.job.order.model]
        run = Run(lease, served, self._queue, self._store, self._pipeline, self._measures)
        task = asyncio.create_task(run.work())
        was_cancelled = False
        try:
            while not task.done():
                await asyncio.wait([task], timeout=POLL_S)
                if not task.done() and not await self._is_held(lease) and not run.is_ending:
                    logger.info("job %s: cancelled, or another worker's", lease.job.id)
                    break
        except asyncio.CancelledError:
            was_cancelled = True
        run.stop()
        try:
            await end(task)
        except asyncio.CancelledError:
            was_cancelled = True
        if was_cancelled:
            await self._hand_back(lease)
            raise asyncio.CancelledError

    async def _hand_back(self, lease: Lease) -> None:
        with contextlib.suppress(LeaseLost, *REDIS_ERRORS):  # then the lease lapses
            await apart(self._queue.hand_back(lease))

    async def _is_held(self, lease: Lease) -> bool:
        try:
            await self._queue.renew(lease)
        except LeaseLost:
            return False
        except REDIS_ERRORS:  # while it is away, it gives the job to nobody else
            pass
        return True
