"""A runner that does not get on, or is gone: the service says so in time, and is well again by itself."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.chaos.faults import FOLDER, IS_IMPATIENT, NUM_DEVICES, Faults
from tests.chaos.running import (
    GATEWAY,
    LARGE,
    RUNNER,
    Running,
    arrays_of,
    assert_same,
    proteins,
    running,
    wait_until,
)

pytestmark = pytest.mark.chaos

OFF_WITHIN_S = 10.0  # measured: 5.0 s, the time limits of canary and status
ON_WITHIN_S = 20.0  # measured: 0.1 s after a stop, 7.5 s after a death; BentoML looks every 10 s


def is_ready(service: Running) -> bool:
    return service.http.get("/readyz").status_code == 200


def wait_for_all_gateways(service: Running) -> None:
    """Until each of them has heard the runner."""
    for worker in service.workers(GATEWAY):
        with service.connected_to(worker) as http:
            wait_until(lambda: http.get("/readyz").status_code == 200, "it was heard")


def test_a_stuck_runner_turns_ready_off_and_loses_nothing(stored_model: None, data_dir: Path) -> None:
    requests = [proteins(LARGE, seed=n) for n in range(80, 83)]
    with running(data_dir) as service:
        expected = service.expect(requests)
        (runner,) = service.workers(RUNNER)
        with service.under_way(requests) as answers:
            runner.suspend()
            try:
                wait_until(lambda: not is_ready(service), "ready is off", OFF_WITHIN_S)
                assert service.http.get("/livez").status_code == 200, "it may come back"
                wait_until(lambda: service.health()["status"] == "unhealthy", "health says so too", OFF_WITHIN_S)
                started = time.monotonic()
                refused = service.post(proteins(1, seed=84))
                assert (refused.status_code, refused.json()["error"]) == (503, "Runner unavailable")
                assert time.monotonic() - started < 5, "who comes now is told at once"
            finally:
                runner.resume()
            wait_until(lambda: is_ready(service), "ready is on again", ON_WITHIN_S)
            for answer, right in zip(answers, expected, strict=True):
                assert_same(arrays_of(answer.result()), right)
        service.assert_well()


@pytest.mark.parametrize("environment", [{}, {"BENTOML_CONTAINERIZED": "true"}], ids=["host", "container"])
def test_a_dead_runner_turns_ready_off_and_is_replaced(
    stored_model: None, data_dir: Path, environment: dict[str, str]
) -> None:
    with running(data_dir, **environment) as service:
        (runner,) = service.workers(RUNNER)
        runner.kill()
        wait_until(lambda: not is_ready(service), "ready is off", OFF_WITHIN_S)
        wait_until(lambda: len(service.workers(RUNNER)) == 1, "BentoML starts another", ON_WITHIN_S)
        wait_until(lambda: is_ready(service), "ready is on again", ON_WITHIN_S)
        service.assert_well()


def test_a_runner_that_is_silent_for_good_ends_the_liveness(stored_model: None, data_dir: Path) -> None:
    with running(data_dir, LIVENESS_SILENCE_S="10") as service:
        (runner,) = service.workers(RUNNER)
        wait_for_all_gateways(service)
        runner.suspend()
        try:
            wait_until(lambda: service.http.get("/livez").status_code != 200, "liveness is off")
            # The other gateway worker may have heard it a moment later
            wait_until(lambda: service.http.get("/health/live").status_code == 503, "its other route too")
            down = 'runner_up{model="esm2_t6_8M"} 0'
            wait_until(lambda: down in service.http.get("/metrics").text, "it is down")
        finally:
            runner.resume()
        wait_until(lambda: service.http.get("/livez").status_code == 200, "it is alive again")


def test_a_runner_whose_devices_hang_is_started_anew_and_loses_nothing(
    stored_model: None, data_dir: Path, tmp_path: Path
) -> None:
    faults = Faults(tmp_path / "faults")
    faults.folder.mkdir()
    environment = {FOLDER: str(faults.folder), NUM_DEVICES: "2", IS_IMPATIENT: "1"}
    with running(data_dir, "tests.chaos.faulty_service:ProteinEmbeddingService", **environment) as service:
        wait_for_all_gateways(service)  # else "not ready" may be that one of them has not heard the runner yet
        ((right,),) = service.expect([proteins(1, seed=90)])
        (hanging,) = service.workers(RUNNER)
        faults.hold.touch()
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(service.post, proteins(1, seed=90))
            # The other device is free, and hangs with the canary
            wait_until(lambda: not is_ready(service), "ready is off", OFF_WITHIN_S)
            wait_until(lambda: not hanging.is_running(), "it ends itself")
            faults.clear()
            assert_same(arrays_of(answer.result()), [right])
        service.assert_well()
