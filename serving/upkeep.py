"""What a gateway worker does by itself, beside requests: jobs, measures, deleting what is old; and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

import psutil

from serving.closing import told_to_end
from serving.gateway import Gateway
from serving.jobs.worker import JobWorker
from serving.measures import measures_of_process
from serving.redis import REDIS_ERRORS
from serving.tasks import apart, end, settle

logger = logging.getLogger(__name__)

SWEEP_EVERY_S = 60.0
COUNT_EVERY_S = 1.0
MEASURE_EVERY_S = 5.0
AGAIN_S = 1.0

Work = Callable[[], Coroutine[Any, Any, None]]


@contextlib.asynccontextmanager
async def running(gateway: Gateway) -> AsyncIterator[None]:
    """While this is open, jobs are worked on, runners are listened to, counts are written, old files deleted.

    At its end jobs are handed back, and runners and Redis are let go.
    """
    runners = [served.runner for served in gateway.models.all]
    for_ever = (_sweep_for_ever, _count_for_ever, _measure_for_ever, _end_what_takes_too_long)
    work: list[Work] = [partial(each, gateway) for each in for_ever]
    work += [gateway.health.listen, *(runner.attend for runner in runners)]
    if gateway.settings.role != "api":
        jobs = gateway.jobs
        worker = JobWorker(jobs.queue, jobs.store, gateway.pipeline, gateway.models.by_name, jobs.measures)
        work += [partial(_until_closing, gateway, worker.run)] * gateway.settings.job_concurrency
    with told_to_end(gateway.is_closing):
        tasks = [asyncio.create_task(_again_and_again(each)) for each in work]
        try:
            yield
        finally:
            await asyncio.gather(*(end(task) for task in tasks))
            await gateway.cache.write_counts()
            await asyncio.gather(*(runner.close() for runner in runners))
            await settle()
            await asyncio.gather(gateway.client.aclose(), gateway.doorkeeper.limits.aclose())


async def _again_and_again(work: Work) -> None:
    """What fails as nobody has foreseen is told, and begun anew: nobody else would miss it."""
    while True:
        try:
            return await work()
        except Exception:
            logger.exception("what goes on beside requests failed; it is begun anew in %g s", AGAIN_S)
            await asyncio.sleep(AGAIN_S)


async def _until_closing(gateway: Gateway, work: Work) -> None:
    """Jobs are handed back when the process is told to end, not when its last client has left."""
    task, closing = asyncio.create_task(_again_and_again(work)), asyncio.create_task(gateway.is_closing.wait())
    try:
        await asyncio.wait([task, closing], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await asyncio.gather(end(task), end(closing))


async def _end_what_takes_too_long(gateway: Gateway) -> None:
    """Told to end, requests that were let in have a while; what is left then is told why it ends."""
    await gateway.is_closing.wait()
    await asyncio.sleep(gateway.settings.shutdown_timeout_secs)
    gateway.under_way.end()
    await asyncio.Event().wait()


async def _count_for_ever(gateway: Gateway) -> None:
    while True:
        await asyncio.sleep(COUNT_EVERY_S)
        await apart(gateway.cache.write_counts())  # cut off in the middle, it would lose what it counted


async def _measure_for_ever(gateway: Gateway) -> None:
    while True:
        found = measures_of_process()
        found.cpu.set(psutil.cpu_percent())
        try:
            await gateway.jobs.note_depths(gateway.models.by_name)
            await gateway.client.ping()
            found.redis_up.set(1)
        except REDIS_ERRORS:
            found.redis_up.set(0)
        await asyncio.sleep(MEASURE_EVERY_S)


async def _sweep_for_ever(gateway: Gateway) -> None:
    while True:
        try:
            deleted = await asyncio.to_thread(gateway.outputs.sweep)
            logger.debug("deleted %d expired outputs", deleted)
        except OSError as error:
            logger.warning("outputs cannot be swept: %s", error)
        try:
            await gateway.jobs.sweep()
        except REDIS_ERRORS as error:
            measures_of_process().redis_errors.labels("jobs").inc()
            logger.warning("jobs cannot be swept: %s", error)
        await asyncio.sleep(SWEEP_EVERY_S)
