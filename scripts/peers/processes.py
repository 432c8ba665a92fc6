"""A peer's process: started, ready inside the `with`, ended after it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from scripts.local_service import ROOT

START_TIMEOUT_S = 240.0
STOP_TIMEOUT_S = 15.0


@contextlib.contextmanager
def running(command: Sequence[str], ready_url: str, environment: Mapping[str, str], log: Path) -> Iterator[int]:
    """Runs a command from the root of the tree; gives its process's number when `ready_url` answers 200.

    Raises:
        RuntimeError: it ended, or is not ready in time; with the last line of its log.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_ready(process, ready_url, log)
        yield process.pid
    finally:
        _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=5).status_code == 200:
                return
        time.sleep(0.2)
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    raise RuntimeError(f"does not start: {lines[-1] if lines else 'it said nothing'}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
