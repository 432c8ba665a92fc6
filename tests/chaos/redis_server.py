"""A Redis that the tests start and end, and a wire to one that takes its time."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from scripts.local_service import free_port
from serving.redis import find_server
from tests.chaos.running import wait_until

BUFFER_BYTES = 1 << 20


class RedisServer:
    """A redis-server on a port of this machine, with nothing on disk."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.client = redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0))
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, port: int | None = None) -> None:
        """Returns when it answers; on its own port, unless another is given."""
        port = port or self.port
        arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)]
        self._process = subprocess.Popen([find_server(), *arguments], stdout=subprocess.DEVNULL)
        with redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as client:
            wait_until(lambda: _answers(client), "redis-server answers")

    def kill(self) -> None:
        """As a crash does it; what it held is lost."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self.client.connection_pool.disconnect()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Inside, it takes connections and commands, and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


def _answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False


def is_running(process: psutil.Process) -> bool:
    """Neither ended, nor ended and not yet noticed by its parent."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@contextmanager
def delayed(port: int, target: int, delay_s: float) -> Iterator[None]:
    """Whoever connects to the one port talks to the other, and has each answer so much later."""
    is_over = threading.Event()
    connections: list[socket.socket] = []

    def carry(source: socket.socket, sink: socket.socket, delay_s: float) -> None:
        try:
            while data := source.recv(BUFFER_BYTES):
                is_over.wait(delay_s)
                sink.sendall(data)
        except OSError:  # either side is gone
            pass
        for end in (source, sink):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def accept(listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:  # closed
                return
            far = socket.create_connection(("127.0.0.1", target))
            connections.extend((near, far))
            start(carry, near, far, 0.0)
            start(carry, far, near, delay_s)

    threads: list[threading.Thread] = []

    def start(work: object, *arguments: object) -> None:
        assert callable(work)
        threads.append(threading.Thread(target=work, args=arguments))
        threads[-1].start()

    with socket.create_server(("127.0.0.1", port)) as listener:
        start(accept, listener)
        try:
            yield
        finally:
            is_over.set()
            listener.shutdown(socket.SHUT_RDWR)
            threads[0].join()
            for connection in connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            for thread in threads[1:]:
                thread.join()
            for connection in connections:
                connection.close()
