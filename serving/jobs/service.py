"""What the routes ask of jobs: submit one, look at it, cancel it, clean up behind them all."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from serving.errors import InvalidRequest, StoreUnavailable
from serving.jobs.measures import Measures
from serving.jobs.queue import Depth, JobQueue, Quota
from serving.jobs.records import Job, Order, new_id
from serving.jobs.schemas import JobOptions
from serving.jobs.store import JobStore
from serving.jobs.submission import Contents, write_input
from serving.results import check_format
from serving.runners import ServedModel
from serving.sequences import Limits
from serving.tasks import finish
from serving.telemetry import traceparent
from serving.threads import run_to_its_end
from serving.uploads import Upload

logger = logging.getLogger(__name__)

ORPHAN_S = 7200.0  # files without a job are deleted when they are so old: their submission has ended long ago


@contextlib.contextmanager
def reaching_files() -> Iterator[None]:
    """
    Raises:
        StoreUnavailable: instead of an OSError, of a disk or of any other place that files of jobs are in.
    """
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(f"the files of jobs cannot be reached ({error.strerror or error})") from error


@dataclass(frozen=True)
class JobService:
    """The queue and the files of jobs together."""

    queue: JobQueue
    store: JobStore
    quota: Quota
    measures: Measures

    async def submit(
        self,
        upload: Upload,
        name: str,
        served: ServedModel,
        options: JobOptions,
        limits: Limits,
        owner: str,
        key: str,
    ) -> tuple[str, Contents]:
        """Writes the input of a new job and puts it into the queue; where that fails, nothing is left of it.

        Args:
            name: as which the model was asked for. With a version, no other one works on the job.
        Returns:
            Its id (or that of the job that this Idempotency-Key already has), and what the upload holds.
        Raises:
            StoreUnavailable: the input cannot be written.
            InvalidRequest, and as `write_input` and `JobQueue.submit`.
        """
        check_format(options.format, options.pooled)
        await self.queue.check()
        job_id, model = new_id(), served.model
        try:
            with reaching_files():
                contents = await run_to_its_end(
                    lambda: write_input(upload, self.store, job_id, model, limits, options.format)
                )
        except BaseException:
            await self._delete(job_id)
            raise
        order = Order(
            *(job_id, owner, name, served.tag, options),
            *(contents.num_sequences, contents.num_residues, traceparent()),
        )
        # Who leaves now leaves a job with its input, or neither
        return await finish(self._enqueue(order, key)), contents

    async def _enqueue(self, order: Order, key: str) -> str:
        """Puts a job, whose input is written, into the queue. Returns as `JobQueue.submit`."""
        taken = ""
        try:
            taken = await self.queue.submit(order, self.quota, key)
        except StoreUnavailable:  # Redis may have the job all the same; if not, the sweep deletes the input
            taken = order.id
            raise
        finally:
            if taken != order.id:
                await self._delete(order.id)
        return taken

    async def cancel(self, job: Job) -> bool:
        """Whether it was queued or running. Its files are deleted."""
        was_active = await self.queue.cancel(job)
        if was_active or job.state == "cancelled":  # who cancelled it may not have come to this
            await self._delete(job.id)
        return was_active

    async def _delete(self, job_id: str) -> None:
        """Its files; what cannot be deleted now, the sweep deletes."""
        try:
            await run_to_its_end(lambda: self.store.delete(job_id))
        except OSError as error:
            logger.warning("job %s leaves files behind: %s", job_id, error)

    async def sweep(self) -> None:
        """Deletes the results whose time is over, and files that belong to no job."""
        for job_id in await self.queue.expired():
            await run_to_its_end(lambda job_id=job_id: self.store.delete(job_id))  # type: ignore[misc]
            await self.queue.forget(job_id)
        old = await run_to_its_end(lambda: self.store.older_than(ORPHAN_S))
        known = await self.queue.known(old)
        for job_id in old:
            if job_id not in known:
                logger.info("deleting the files of %s, which is no job", job_id)
                await run_to_its_end(lambda job_id=job_id: self.store.delete(job_id))  # type: ignore[misc]

    async def note_depths(self, by_name: Mapping[str, ServedModel]) -> None:
        """How many jobs there are of each model, by whatever name they asked for it."""
        depths: dict[str, Depth] = {}
        for name, served in by_name.items():
            model, one = served.model.name, await self.queue.depth(name)
            depths[model] = depths[model] + one if model in depths else one
        for model, depth in depths.items():
            self.measures.note(model, depth)


def check_key(key: str | None) -> str:
    """An Idempotency-Key as it is kept; "" for none.

    Raises:
        InvalidRequest: it is no short text.
    """
    if key is not None and not (0 < len(key) <= 255 and key.isprintable()):
        raise InvalidRequest("Idempotency-Key: not 1 to 255 printable characters")
    return key or ""
