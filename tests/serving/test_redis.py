"""The service's own Redis: started, started again, held by one owner, gone with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import uvloop
from redis.backoff import NoBackoff
from redis.retry import Retry

from scripts.local_service import ROOT
from serving.redis import REDIS_ERRORS, EmbeddedRedis, RedisStartError, connect
from serving.settings import Settings


@pytest.fixture
def server(data_dir: Path) -> Iterator[EmbeddedRedis]:
    server = EmbeddedRedis(data_dir, max_memory_mb=64)
    server.start()
    yield server
    server.stop()


def client_of(server: EmbeddedRedis) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(server.socket), retry=Retry(NoBackoff(), 0))


def wait_until(is_true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not is_true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def answers(server: EmbeddedRedis) -> bool:
    try:
        with client_of(server) as client:
            return bool(client.ping())
    except REDIS_ERRORS:
        return False


def process_id(server: EmbeddedRedis) -> int | None:
    """Of the server that answers now, if one does."""
    try:
        with client_of(server) as client:
            return int(client.info()["process_id"])
    except REDIS_ERRORS:
        return None


def test_it_keeps_what_it_holds_over_a_restart(data_dir: Path) -> None:
    for value in (None, b"1"):
        server = EmbeddedRedis(data_dir, max_memory_mb=64)
        server.start()
        with client_of(server) as client:
            assert client.get("kept") == value
            client.set("kept", 1)
        server.stop()
        assert not answers(server)


def test_it_is_started_again_when_it_dies(server: EmbeddedRedis) -> None:
    with client_of(server) as client:
        client.set("kept", 1)
        client.execute_command("WAITAOF", 1, 0, 0) if client.info()["redis_version"] >= "7.2" else None
        pid = client.info()["process_id"]
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: process_id(server) not in (None, pid), "not started again")
    with client_of(server) as client:
        assert client.get("kept") == b"1"


def test_it_listens_on_its_socket_alone(server: EmbeddedRedis) -> None:
    with client_of(server) as client:
        assert client.config_get("port") == {"port": "0"}
    assert server.socket.stat().st_mode & 0o077 == 0


def test_a_second_service_on_the_same_folder_is_refused(server: EmbeddedRedis, data_dir: Path) -> None:
    with pytest.raises(RedisStartError, match="DATA_DIR: another service is using"):
        EmbeddedRedis(data_dir, max_memory_mb=64).start()
    assert answers(server)


def test_it_ends_with_an_owner_that_is_killed(data_dir: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from serving.redis import EmbeddedRedis\n"
        "server = EmbeddedRedis(Path(sys.argv[1]), 64); server.start(); print('up', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(data_dir)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        server = EmbeddedRedis(data_dir, max_memory_mb=64)
        assert answers(server)
        owner.kill()
    wait_until(lambda: not answers(server), "the server outlived its owner")
    server.start()  # and the folder is free again
    server.stop()


def test_a_long_data_folder_gets_its_socket_elsewhere(tmp_path: Path) -> None:
    data_dir = tmp_path / ("long" * 30)
    server = EmbeddedRedis(data_dir, max_memory_mb=64)
    assert not server.socket.is_relative_to(data_dir)
    server.start()
    try:
        assert answers(server)
        assert connect(Settings(data_dir=data_dir)).connection_pool.connection_kwargs["path"] == str(server.socket)
    finally:
        server.stop()
        server.socket.parent.rmdir()


def test_a_machine_without_redis_is_told_what_to_do(
    monkeypatch: pytest.MonkeyPatch, data_dir: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RedisStartError, match="set REDIS_URL"):
        EmbeddedRedis(data_dir, max_memory_mb=64).start()


class Reset:
    """Passes bytes on between a port of its own and another, until it resets all connections."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._near: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._near.append(near)
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    @staticmethod
    def _carry(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(65_536):
                sink.sendall(data)

    def reset_all(self) -> None:
        for near in self._near:
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            near.shutdown(socket.SHUT_RD)  # whoever reads from it lets go of it, which closes it
        self._near.clear()

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_connections_that_were_reset_while_they_were_idle_are_made_anew(
    run: Callable[[Coroutine[Any, Any, None]], None], tcp_redis_url: str, data_dir: Path
) -> None:
    """As a firewall on the way does it."""
    way = Reset(int(tcp_redis_url.rpartition(":")[2].partition("/")[0]))
    url = re.sub(r":\d+/", f":{way.port}/", tcp_redis_url)

    async def ask_three_times() -> None:
        client = connect(Settings(redis_url=url, data_dir=data_dir))
        await client.set("a", 1)
        for _ in range(3):
            assert await asyncio.gather(*(client.get("a") for _ in range(4))) == [b"1"] * 4
            way.reset_all()
            await asyncio.sleep(0.1)
        await client.aclose()

    run(ask_three_times())
    way.close()
