"""Memory of the service's processes over time, by what they do."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType

import psutil

from scripts.benchmarks.reports import markdown

SAMPLE_EVERY_S = 0.05  # for peaks that pass; twenty samples a second take 0.15 cores


@dataclass(frozen=True)
class Growth:
    """Bytes of all processes of a role. start, end: when the watch began and ended. peak: the most in between.

    PSS counts a page that n processes share as its nth part; RSS counts it in each.
    """

    start_pss: int
    peak_pss: int
    end_pss: int
    start_rss: int
    peak_rss: int
    end_rss: int


class Footprint:
    """While its `with` lasts, samples the processes below `pid`; after it, `growth` has every role.

    Roles: `gateway` (all its workers), each runner by its name, `redis`.
    """

    def __init__(
        self, pid: int, every_s: float = SAMPLE_EVERY_S, gateway: str = "protein_embedding_service"
    ) -> None:
        self.growth: dict[str, Growth] = {}
        self._every_s = every_s
        self._roles = find_roles(pid, gateway)
        self._samples: dict[str, list[tuple[int, int]]] = {role: [] for role in self._roles}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Footprint:
        self._sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()
        for role, samples in self._samples.items():
            pss, rss = zip(*samples, strict=True)
            self.growth[role] = Growth(pss[0], max(pss), pss[-1], rss[0], max(rss), rss[-1])

    def _watch(self) -> None:
        while not self._ended.wait(self._every_s):
            self._sample()

    def _sample(self) -> None:
        for role, processes in self._roles.items():
            infos = [info for process in processes if (info := _memory(process)) is not None]
            self._samples[role].append((sum(pss for pss, _ in infos), sum(rss for _, rss in infos)))


def find_roles(pid: int, gateway: str) -> Mapping[str, list[psutil.Process]]:
    """The processes of a service by what they do; BentoML names a worker's service on its command line."""
    roles: dict[str, list[psutil.Process]] = {}
    for process in psutil.Process(pid).children(recursive=True):
        command = process.cmdline()
        if "--service-name" in command:
            name = command[command.index("--service-name") + 1]
            roles.setdefault("gateway" if name == gateway else name, []).append(process)
        elif process.name() == "redis-server":
            roles.setdefault("redis", []).append(process)
    return roles


def _memory(process: psutil.Process) -> tuple[int, int] | None:
    """PSS and RSS; None for a process that is gone."""
    try:
        info = process.memory_full_info()
    except psutil.NoSuchProcess:
        return None
    return info.pss, info.rss


@contextlib.contextmanager
def watching(pid: int | None, every_s: float = SAMPLE_EVERY_S) -> Iterator[dict[str, Growth]]:
    """Growth by role, filled at the end; empty for a service that somebody else started."""
    growth: dict[str, Growth] = {}
    if pid is None:
        yield growth
        return
    with Footprint(pid, every_s) as footprint:
        yield growth
    growth.update(footprint.growth)


def memory_table(growth: Mapping[str, Growth]) -> str:
    """Megabytes by role."""
    header = ["memory, MB", "PSS at start", "peak", "end", "peak above start", "RSS at start", "peak above start"]
    rows = [
        [
            role,
            *(f"{size / 1e6:,.0f}" for size in (one.start_pss, one.peak_pss, one.end_pss)),
            f"{(one.peak_pss - one.start_pss) / 1e6:,.0f}",
            f"{one.start_rss / 1e6:,.0f}",
            f"{(one.peak_rss - one.start_rss) / 1e6:,.0f}",
        ]
        for role, one in growth.items()
    ]
    return markdown(header, rows)
