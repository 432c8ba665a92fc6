"""Jobs outlive whatever dies: all of the service, a worker, the runner; and what was done of them stays done."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import redis

from scripts import import_model
from scripts.npz import read_npz
from serving.redis import EmbeddedRedis
from tests.chaos.redis_server import RedisServer
from tests.chaos.running import GATEWAY, Running, arrays_of, proteins, running, wait_until

pytestmark = pytest.mark.chaos

MODEL = "esm2_mini"  # quick enough that a job has many windows, which take two seconds each
RUNNER = f"runner_{MODEL}"
# Every sequence is a batch of its own: no machine is done with a job before it is broken
SETTINGS = {"MODELS": MODEL, "BATCH_QUEUE_ENABLED": "false"}
ROUTES = [("GET", ""), ("DELETE", ""), ("GET", "/events"), ("GET", "/result")]
COUNT = 600  # sequences of a job: some seconds
TOKENS = 302  # of a sequence; a canary has 14
UNDER_WAY = (
    4 * 41
)  # sequences: two windows, two calls each, of 16,384 tokens; a sequence of 300 residues costs 404
STOPS_WITHIN_S = 5.0  # measured: 0.6 s
TAKEN_UP_WITHIN_S = 5.0  # measured: 1.2 s; a lease lasts for a second
TOLERANCE = 1e-5  # as tests/chaos/running.py


@pytest.fixture(scope="module")
def stored_mini() -> None:
    import_model.main([MODEL])


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def module_service(
    redis_server: RedisServer, stored_mini: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    """Two gateway workers, whose leases last for a second."""
    folder = tmp_path_factory.mktemp("jobs")
    with running(folder, **SETTINGS, REDIS_URL=redis_server.url, JOB_LEASE_S="1") as service:
        yield service


@dataclass(frozen=True)
class Submitted:
    """A job, and the embeddings that it is to come out with."""

    id: str
    sequences: Sequence[str]

    def status(self, http: httpx.Client) -> dict[str, Any]:
        reply = http.get(f"/embeddings/jobs/{self.id}")
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def num_done(self, http: httpx.Client) -> int:
        found: int = self.status(http)["progress"]["sequences"]
        return found

    def is_in(self, http: httpx.Client, *states: str) -> bool:
        return self.status(http)["status"] in states

    def record(self, client: redis.Redis) -> dict[str, str]:
        """As Redis has it."""
        found: Any = client.hgetall(f"pes:job:{self.id}")
        return {name.decode(): value.decode() for name, value in found.items()}

    def noted(self, client: redis.Redis) -> int:
        """Sequences that are done with for good."""
        return int(self.record(client)["next"])

    def assert_done(self, http: httpx.Client) -> dict[str, Any]:
        """Waits for its end. Every sequence is there once, in order, with the embedding that a request gives."""
        wait_until(lambda: not self.is_in(http, "queued", "running"), "the job is over")
        found = self.status(http)
        assert (found["status"], found["progress"]["failed"], found["reason"]) == ("done", 0, None)
        assert found["progress"]["sequences"] == len(self.sequences)
        assert found["progress"]["residues"] == sum(map(len, self.sequences))
        arrays = read_npz(http.get(found["download_link"]).content)
        assert [str(id) for id in arrays["ids"]] == [f"sequence_{i}" for i in range(len(self.sequences))]
        assert sum(name.startswith("embedding_") for name in arrays) == len(self.sequences)
        step = max(1, len(self.sequences) // 20)
        sample = list(range(0, len(self.sequences), step))
        body = {"sequences": [self.sequences[i] for i in sample], "dtype": "float32", "pooled": False}
        reply = http.post(f"/embeddings/compute/{MODEL}", json=body, headers={"accept": "application/x-npz"})
        for i, rows in zip(sample, arrays_of(reply), strict=True):
            np.testing.assert_allclose(arrays[f"embedding_{i}"], rows.mean(0), rtol=0, atol=TOLERANCE)
        return found


def submit(http: httpx.Client, count: int, seed: int) -> Submitted:
    sequences = proteins(count, seed)
    reply = http.post("/embeddings/jobs/submit", json={"sequences": sequences, "dtype": "float32"})
    assert reply.status_code == 202, reply.text
    return Submitted(reply.json()["job_id"], sequences)


def kill_everything(service: Running) -> None:
    """As the machine's out-of-memory killer might, the parent first, so that it starts nobody again."""
    family = [service.parent, *service.children()]
    for process in family:
        process.kill()
    _, left = psutil.wait_procs(family, timeout=10)
    assert left == []


@contextmanager
def one_life(data_dir: Path) -> Iterator[tuple[Running, redis.Redis]]:
    """The service, and its own Redis."""
    with (
        running(data_dir, **SETTINGS, JOB_LEASE_S="1") as service,
        redis.Redis(unix_socket_path=str(EmbeddedRedis.socket_path(data_dir))) as client,
    ):
        yield service, client


def test_a_job_outlives_three_deaths_of_the_whole_service(stored_mini: None, data_dir: Path) -> None:
    """At its beginning, in its middle, and near its end. Its Redis is the service's own, and dies too."""
    with one_life(data_dir) as (service, client):
        job = submit(service.http, COUNT, seed=200)
        computed, noted = live_until(service, client, job, num_done=1)
    for share in (0.4, 0.7):
        with one_life(data_dir) as (service, client):
            assert job.noted(client) >= noted, "what was noted is kept"
            more, noted = live_until(service, client, job, num_done=int(share * COUNT))
            computed += more
    with one_life(data_dir) as (service, client):
        assert job.noted(client) >= noted
        wait_until(lambda: job.is_in(service.http, "done"), "it is done")
        last = num_computed(service)
        job.assert_done(service.http)
    assert last <= COUNT - noted, "what was noted is not computed again"
    assert computed + last <= COUNT + 3 * UNDER_WAY


def num_computed(service: Running) -> int:
    """Sequences that this life has worked on. Misses are more: a window's are counted before it is computed."""
    return service.num_tokens(MODEL) // TOKENS


def live_until(service: Running, client: redis.Redis, job: Submitted, num_done: int) -> tuple[int, int]:
    """Kills everything when so many sequences are done. How many were computed in this life, and noted by then."""
    wait_until(lambda: job.num_done(service.http) >= num_done, "it has come so far")
    assert job.is_in(service.http, "running")
    computed, noted = num_computed(service), job.noted(client)
    kill_everything(service)
    return computed, noted


def submit_to(service: Running, worker: psutil.Process, count: int, seed: int) -> Submitted:
    """A job that this gateway worker has: the other one is stopped until it is taken."""
    (other,) = [process for process in service.workers(GATEWAY) if process != worker]
    with service.connected_to(worker) as http:
        other.suspend()
        try:
            job = submit(http, count, seed)
            wait_until(lambda: job.is_in(http, "running"), "it is taken")
        finally:
            other.resume()
    return job


def test_the_job_of_a_worker_that_is_killed_is_finished_by_another(
    module_service: Running, redis_server: RedisServer
) -> None:
    wait_until(lambda: len(module_service.workers(GATEWAY)) == 2, "there are two")
    holder, other = module_service.workers(GATEWAY)
    job = submit_to(module_service, holder, COUNT, seed=201)
    with module_service.connected_to(other) as http:
        wait_until(lambda: job.noted(redis_server.client) > 0, "a window is noted")
        token = job.record(redis_server.client)["token"]
        noted = job.noted(redis_server.client)
        holder.kill()
        psutil.wait_procs([holder])
        started = time.monotonic()
        wait_until(lambda: job.record(redis_server.client).get("token") != token, "another has it")
        assert time.monotonic() - started < TAKEN_UP_WITHIN_S
        assert job.noted(redis_server.client) >= noted
        job.assert_done(http)
    wait_until(lambda: len(module_service.workers(GATEWAY)) == 2, "there are two again")


def test_a_worker_that_was_stopped_for_too_long_leaves_its_job_to_the_other(
    module_service: Running, redis_server: RedisServer
) -> None:
    wait_until(lambda: len(module_service.workers(GATEWAY)) == 2, "there are two")
    holder, other = module_service.workers(GATEWAY)
    job = submit_to(module_service, holder, COUNT, seed=202)
    with module_service.connected_to(other) as http:
        wait_until(lambda: job.noted(redis_server.client) > 0, "a window is noted")
        token = job.record(redis_server.client)["token"]
        holder.suspend()
        try:
            wait_until(lambda: job.record(redis_server.client).get("token") != token, "the other has it")
        finally:
            holder.resume()
        heir = job.record(redis_server.client)["token"]
        wait_until(
            lambda: f"job {job.id}: cancelled, or another worker's" in module_service.service.log.read_text(),
            "the first one has noticed",
        )
        job.assert_done(http)
    folder = module_service.service.log.parent / "jobs" / job.id
    wait_until(lambda: len(list(folder.iterdir())) == 1, "nothing of the first one is left")
    assert [path.name for path in folder.iterdir()] == [f"{heir}-embeddings.npz"]


def test_a_job_waits_for_a_runner_that_is_killed(module_service: Running, redis_server: RedisServer) -> None:
    job = submit(module_service.http, COUNT, seed=203)
    wait_until(lambda: job.num_done(module_service.http) > 0, "it is under way")
    (runner,) = module_service.workers(RUNNER)
    runner.kill()
    psutil.wait_procs([runner])
    assert job.is_in(module_service.http, "running")
    job.assert_done(module_service.http)
    assert int(job.record(redis_server.client)["tries"]) == 0, "its worker has had it all the time"


def test_without_redis_jobs_are_refused_with_the_reason_and_nothing_is_left(
    module_service: Running, redis_server: RedisServer
) -> None:
    job = submit(module_service.http, 1, seed=206)
    job.assert_done(module_service.http)
    folders = set((module_service.service.log.parent / "jobs").iterdir())
    total = module_service.http.get("/embeddings/jobs").json()["total"]
    body = {"sequences": proteins(1, seed=207)}
    asked = [
        ("POST", "/embeddings/jobs/submit", body),
        ("GET", "/embeddings/jobs", None),
        *((method, f"/embeddings/jobs/{job.id}{path}", None) for method, path in ROUTES),
    ]
    with redis_server.hanging(), ThreadPoolExecutor(len(asked)) as pool:
        replies = list(pool.map(lambda each: module_service.http.request(each[0], each[1], json=each[2]), asked))
    for (method, path, _), reply in zip(asked, replies, strict=True):
        assert (reply.status_code, reply.json()["error"]) == (503, "Store unavailable"), (method, path)
    assert set((module_service.service.log.parent / "jobs").iterdir()) == folders
    assert module_service.http.get("/embeddings/jobs").json()["total"] == total, "nor does it come behind time"
    submit(module_service.http, 1, seed=208).assert_done(module_service.http)


def watch(url: str, job: Submitted, has_begun: threading.Event) -> str:
    """Reads the events of a job; how the stream ended."""
    try:
        with httpx.stream("GET", f"{url}/embeddings/jobs/{job.id}/events", timeout=60) as reply:
            for _ in reply.iter_lines():
                has_begun.set()
    except httpx.TransportError as error:
        return repr(error)
    return "at its end"


def test_a_service_that_is_told_to_end_hands_its_job_back_and_ends(
    redis_server: RedisServer, stored_mini: None, data_dir: Path
) -> None:
    """Though somebody watches it. Its lease lasts for an hour: it would not lapse by itself."""
    environment = {**SETTINGS, "REDIS_URL": f"redis://127.0.0.1:{redis_server.port}/1", "JOB_LEASE_S": "3600"}
    has_begun = threading.Event()
    with (
        redis.Redis(port=redis_server.port, db=1) as client,
        running(data_dir, **environment) as service,
        ThreadPoolExecutor(1) as pool,
    ):
        job = submit(service.http, COUNT, seed=204)
        wait_until(lambda: job.noted(client) > 0, "a window is noted")
        watching = pool.submit(watch, service.service.url, job, has_begun)
        assert has_begun.wait(30)
        children, started = service.children(), time.monotonic()
        assert service.service.stop() == 0
        assert time.monotonic() - started < STOPS_WITHIN_S
        _, left = psutil.wait_procs(children, timeout=5)
        assert left == []
        assert watching.result() == "at its end"
        record = job.record(client)
        assert (record["state"], record["tries"], "token" in record) == ("queued", "0", False)
        assert 0 < int(record["next"]) < COUNT
        assert client.zscore(f"pes:jobs:queued:{MODEL}", job.id) is not None


def test_who_takes_jobs_in_does_not_work_on_them_and_who_works_takes_nothing_in(
    redis_server: RedisServer, stored_mini: None, tmp_path: Path
) -> None:
    environment = {
        "MODELS": MODEL,
        "REDIS_URL": f"redis://127.0.0.1:{redis_server.port}/2",
        "OUTPUT_URL": str(tmp_path / "files"),
    }
    with running(tmp_path / "api", ROLE="api", **environment) as api:
        job = submit(api.http, 50, seed=205)
        with running(tmp_path / "worker", ROLE="worker", GATEWAY_WORKERS="1", **environment) as worker:
            job.assert_done(api.http)
            logs = [service.service.log.read_text() for service in (api, worker)]
            assert [f"job {job.id}: taken" in log for log in logs] == [False, True]
            for path in ("/embeddings/health", "/readyz", "/metrics", "/embeddings/config"):
                assert worker.http.get(path).status_code == 200, path
            assert worker.http.get("/embeddings/config").json()["jobs"]["role"] == "worker"
            body = {"sequences": ["MKTAYIAKQR"]}
            for path in (
                f"/embeddings/compute/{MODEL}",
                "/embeddings/jobs/submit",
                "/encode",
                "/encode_per_residue",
            ):
                assert worker.http.post(path, json=body).status_code == 404, path
            for path in ("/embeddings/jobs", f"/embeddings/jobs/{job.id}", f"/embeddings/jobs/{job.id}/result"):
                assert worker.http.get(path).status_code == 404, path
