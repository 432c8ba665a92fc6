"""The jobs of a running service, seen from the other side of HTTP: submitted once, followed, fetched whole.

A service that is away for a while is waited for. What it refuses is not asked again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from os import SEEK_END
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from serving.jobs.records import ENDED
from serving.jobs.schemas import JobStatus, JobSubmitted
from serving.schemas import ErrorBody

T = TypeVar("T")
ModelT = TypeVar("ModelT", bound=BaseModel)

TIMEOUT = httpx.Timeout(60.0, connect=10.0)
SUBMIT_TIMEOUT = httpx.Timeout(1800.0, connect=10.0)  # a submission is answered when every sequence was checked
SUBMIT_PATIENCE_S = 60.0  # a wrong address is noticed soon
PATIENCE_S = 3600.0
PAUSE_S = 1.0
POLL_S = (0.2, 1.0)  # the first time, and in the end
_BLOCK_BYTES = 1 << 16

Show = Callable[[int], None]  # is told how many bytes have gone or come


class Refused(Exception):
    """The service says no; asking again would not help."""


class GaveUp(Exception):
    """The service was away for too long."""


class _Away(Exception):
    """No answer now. retry_after_s: in how many seconds to ask again."""

    def __init__(self, why: str, retry_after_s: float = PAUSE_S) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class RemoteJobs:
    """Args:
    url: of the service.
    note: is told, in a line, that the service is away, and that it is back.
    key: of its API; "" for none.
    """

    def __init__(self, url: str, note: Callable[[str], None], key: str = "") -> None:
        self._url, self._note = url, note
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=url, timeout=TIMEOUT, headers=headers)

    def __enter__(self) -> RemoteJobs:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def submit(self, fasta: Path, options: Mapping[str, Any], show: Show) -> JobSubmitted:
        """A FASTA file, plain or gzip, as a job: read while it is sent, and one job however often it is sent.

        Raises:
            Refused, GaveUp, OSError: there is no job (after GaveUp: there may be one).
        """
        size_bytes = fasta.stat().st_size
        headers = {
            "Content-Type": "text/x-fasta",  # gzip is known by its first bytes
            "Content-Length": str(size_bytes),
            "Idempotency-Key": uuid.uuid4().hex,
        }

        def send() -> JobSubmitted:
            with fasta.open("rb") as file:
                reply = self._http.post(
                    "/embeddings/jobs/submit",
                    params=options,
                    headers=headers,
                    content=_blocks(file, show),
                    timeout=SUBMIT_TIMEOUT,
                )
            return self._read(reply, JobSubmitted)

        return self._persist(send, SUBMIT_PATIENCE_S)

    def status(self, job_id: str) -> JobStatus:
        """Raises Refused, GaveUp."""
        return self._persist(lambda: self._read(self._http.get(_path(job_id)), JobStatus), PATIENCE_S)

    def cancel(self, job_id: str) -> JobStatus:
        """The job as it is then. Raises Refused, GaveUp."""
        return self._persist(lambda: self._read(self._http.delete(_path(job_id)), JobStatus), PATIENCE_S)

    def follow(self, job_id: str, show: Callable[[JobStatus], None]) -> JobStatus:
        """A job that is over; until then it is shown again and again. Raises Refused, GaveUp."""
        pause_s, most_s = POLL_S
        while True:
            job = self.status(job_id)
            if job.status in ENDED:
                return job
            show(job)
            time.sleep(pause_s)
            pause_s = min(most_s, pause_s * 1.5)

    def fetch(self, job: JobStatus, file: BinaryIO, etag_path: Path, show: Show) -> None:
        """The result of a job that is done, behind what the file holds of it already.

        Args:
            file: open for appending.
            etag_path: of the file that says of which version of which result the file is a part.
        Raises:
            Refused, GaveUp, OSError: what has come so far is kept.
        """
        self._persist(lambda: self._fetch(job, file, etag_path, show), PATIENCE_S, file.tell)
        if (size_bytes := file.tell()) != job.size_bytes:
            _empty(file)
            raise Refused(f"the result has {job.size_bytes} bytes, and {size_bytes} came")

    def _fetch(self, job: JobStatus, file: BinaryIO, etag_path: Path, show: Show) -> None:
        """One attempt."""
        assert job.download_link is not None
        assert job.size_bytes is not None
        size_bytes = file.seek(0, SEEK_END)
        if size_bytes > job.size_bytes:
            size_bytes = _empty(file)
        etag = etag_path.read_text() if size_bytes and etag_path.exists() else ""
        headers = {"Accept-Encoding": "identity"}
        if etag:
            headers |= {"Range": f"bytes={size_bytes}-", "If-Range": etag}
        with self._http.stream("GET", job.download_link, headers=headers) as reply:
            if reply.status_code == 416 and size_bytes == job.size_bytes:
                return  # it is of this version, and nothing is missing
            if not reply.is_success:
                reply.read()
                self._check(reply)
            if reply.status_code != 206:
                _empty(file)
                etag_path.write_text(reply.headers.get("etag", ""))
            elif not (found_range := reply.headers.get("content-range", "")).startswith(f"bytes {size_bytes}-"):
                raise Refused(f"bytes {size_bytes} and on were asked for, {found_range!r} came")
            for block in reply.iter_raw():
                file.write(block)
                show(file.tell())
            file.flush()

    def _persist(self, attempt: Callable[[], T], patience_s: float, how_far: Callable[[], int] = lambda: 0) -> T:
        """What the attempt returns, once the service answers.

        Args:
            how_far: the attempts have come in all; while that grows, they go on.
        Raises:
            GaveUp: for so long there was no answer, and no attempt came further.
        """
        since: float | None = None
        furthest = how_far()
        while True:
            try:
                result = attempt()
            except (httpx.TransportError, _Away) as error:
                why = str(error) or type(error).__name__
                if since is None:
                    since = time.monotonic()
                    self._note(f"{self._url} does not answer ({why}); trying again")
                if how_far() > furthest:
                    furthest, since = how_far(), time.monotonic()
                if time.monotonic() - since > patience_s:
                    raise GaveUp(f"{self._url} has not answered for {patience_s:g} s ({why})") from error
                time.sleep(error.retry_after_s if isinstance(error, _Away) else PAUSE_S)
            else:
                if since is not None:
                    self._note(f"{self._url} answers again")
                return result

    def _read(self, reply: httpx.Response, kind: type[ModelT]) -> ModelT:
        self._check(reply)
        try:
            return kind.model_validate_json(reply.content)
        except ValidationError:
            raise Refused(f"{self._url} answers, but not as this service does") from None

    def _check(self, reply: httpx.Response) -> None:
        """Raises _Away or Refused for a reply that is an error."""
        if reply.is_success:
            return
        try:
            why = ErrorBody.model_validate_json(reply.content).detail
        except ValidationError:
            why = f"{reply.status_code} {reply.reason_phrase}"
        if reply.status_code == 429 or reply.status_code >= 500:
            asked = reply.headers.get("retry-after", "")
            raise _Away(why, float(asked) if asked.isdecimal() else PAUSE_S)
        raise Refused(why)


def _path(job_id: str) -> str:
    return f"/embeddings/jobs/{quote(job_id, safe='')}"


def _empty(file: BinaryIO) -> int:
    file.truncate(0)
    return file.seek(0)


def _blocks(file: BinaryIO, show: Show) -> Iterator[bytes]:
    while block := file.read(_BLOCK_BYTES):
        yield block
        show(file.tell())
