"""The outputs cannot be written any more, as on a full disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from serving.outputs import MEMORY_BYTES
from tests.chaos.running import GATEWAY, Running, arrays_of, assert_same, proteins

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.skipif(not hasattr(psutil, "RLIMIT_FSIZE"), reason="limits of a running process: Linux alone"),
]

SUBMIT = "/embeddings/jobs/submit"
MARGIN_BYTES = 500_000  # beyond the log, which the workers write too


@contextmanager
def files_limited(workers: list[psutil.Process], size_bytes: int) -> Iterator[None]:
    """The kernel refuses the workers every byte of a file behind that size (EFBIG)."""
    limits = [worker.rlimit(psutil.RLIMIT_FSIZE) for worker in workers]
    for worker, (_, hard) in zip(workers, limits, strict=True):
        worker.rlimit(psutil.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        for worker, limit in zip(workers, limits, strict=True):
            worker.rlimit(psutil.RLIMIT_FSIZE, limit)


def test_a_large_reply_is_refused_with_the_reason_and_small_ones_go_on(shared: Running) -> None:
    large, small = proteins(8, seed=40, length=1000), proteins(2, seed=41, length=100)
    size_bytes = 8 * 1000 * 320 * 4
    assert size_bytes > MEMORY_BYTES, "a smaller npz is made in memory"
    limit = shared.service.log.stat().st_size + MARGIN_BYTES
    assert limit < size_bytes * 0.9, "the npz has to be larger than that; it deflates by a tenth at most"
    expected = shared.embed(small)
    with files_limited(shared.workers(GATEWAY), limit):
        for worker in shared.workers(GATEWAY):
            with shared.connected_to(worker) as http:
                for accept in ("application/json", "application/x-npz"):
                    http.headers["accept"] = accept
                    refused = shared.post(large, http, pooled=False)
                    assert (refused.status_code, refused.json()["error"]) == (503, "Store unavailable")
                    assert "File too large" in refused.json()["detail"]
                    assert list(shared.outputs.iterdir()) == []
                assert_same(arrays_of(shared.post(small, http)), expected)
    rows = arrays_of(shared.post(large, pooled=False))
    assert [row.shape for row in rows] == [(1000, 320)] * 8


@pytest.mark.parametrize("kind", ["text", "form"])
def test_a_submission_that_cannot_be_kept_is_refused_with_the_reason(shared: Running, kind: str) -> None:
    size_bytes = shared.service.log.stat().st_size + 2 * MARGIN_BYTES
    num_before = shared.http.get("/embeddings/jobs").json()["total"]
    size_bytes = max(size_bytes, 2_000_000)  # a form of up to a megabyte is held in memory
    text = "".join(
        f">{number}\n{protein}\n" for number, protein in enumerate(proteins(size_bytes // 1000, 42, 1000))
    )
    for worker in shared.workers(GATEWAY):
        with files_limited([worker], size_bytes - MARGIN_BYTES), shared.connected_to(worker) as http:
            if kind == "text":
                reply = http.post(SUBMIT, content=text, headers={"content-type": "text/x-fasta"})
            else:
                reply = http.post(SUBMIT, files={"file": ("proteins.fasta", text)})
        assert (reply.status_code, reply.json()["error"]) == (503, "Store unavailable")
        assert "File too large" in reply.json()["detail"]
    assert shared.http.get("/embeddings/jobs").json()["total"] == num_before
