"""The service as a subprocess of this one: for the demo, the tests and the benchmarks."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import httpx
import psutil

ROOT = Path(__file__).parents[1]
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 60.0  # longer than the service lets requests finish


class LocalService:
    """`bentoml serve` on a free port of this machine; ready inside the `with`, ended after it.

    Args:
        data_dir: its DATA_DIR; the log goes there too.
        environment: settings, on top of this process's own.
        target: what to serve; a Bento's tag, or the service in the current tree.
        folder: where it is started.
    """

    def __init__(
        self,
        data_dir: Path,
        environment: Mapping[str, str],
        target: str = "service:ProteinEmbeddingService",
        folder: Path = ROOT,
    ) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self.log = data_dir / "service.log"
        self._environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "1", "DATA_DIR": str(data_dir), **environment}
        self._target = target
        self._folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalService:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        bentoml = Path(sys.executable).with_name("bentoml")
        port = self.url.rpartition(":")[2]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(bentoml), "serve", self._target, "--host", "127.0.0.1", "--port", port],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> int:
        """Ends the service as an operator would, with SIGTERM. Returns its exit status."""
        assert self.process is not None
        family: list[psutil.Process] = []
        if self.process.poll() is None:
            family = psutil.Process(self.process.pid).children(recursive=True)
            self.process.terminate()
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            for member in family:  # BentoML's workers are in process groups of their own
                with contextlib.suppress(psutil.NoSuchProcess):
                    member.kill()
            return self.process.wait()

    def _wait_until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the service ended at its start:\n{self.tail()}")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"the service is not ready after {START_TIMEOUT_S:g} s:\n{self.tail()}")

    def tail(self, num_lines: int = 20) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-num_lines:])


def free_port() -> int:
    """A TCP port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
