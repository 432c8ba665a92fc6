"""Who takes part: the engine on the backends asked for, and the peers asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from scripts.benchmarks.contenders import Contender, Task
from scripts.benchmarks.machine import loading, prepare
from scripts.benchmarks.memory import Meter
from scripts.benchmarks.packed import USES_KERNELS, Packed
from scripts.benchmarks.peers import Peers, Way, known_peers

WARM_UP = "MKTAYIAKQR"


@dataclass(frozen=True)
class Ours:
    """The engine on a backend of USES_KERNELS."""

    backend: str


Entry = Ours | Way


def choose_entries(backends: Sequence[str], peers: Sequence[str], task: Task) -> dict[str, Entry]:
    """Entries by name. The first backend is `packed`, any other `packed-NAME`.

    peers: names of `known_peers`, or `all`.

    Raises:
        SystemExit: for a name that is not known.
    """
    entries: dict[str, Entry] = {}
    for backend in _known(backends, list(USES_KERNELS), "--backends"):
        entries[f"packed-{backend}" if entries else "packed"] = Ours(backend)
    if not entries:
        raise SystemExit(f"--backends: at least one of {', '.join(USES_KERNELS)}")
    known = known_peers(task)
    for peer in known if list(peers) == ["all"] else _known(peers, list(known), "--compare"):
        entries |= known[peer]
    return entries


def _known(names: Sequence[str], known: Sequence[str], option: str) -> Iterator[str]:
    for name in names:
        if name not in known:
            raise SystemExit(f"{option}: {name} is none of {', '.join(known)}")
        yield name


def start(entry: Entry, task: Task, peers: Peers) -> Contender:
    with loading():
        return Packed(task, entry.backend) if isinstance(entry, Ours) else peers.start(entry)


def peak_bytes(entry: Entry, task: Task, sequences: Sequence[str], runs: int = 1) -> int:
    """Peak above the weights of an entry's first runs on the sequences; for a process of its own.

    The weights are what is in use after loading and one run of WARM_UP, which has every weight read and every
    library loaded.
    """
    prepare()
    contender = start(entry, task, Peers(task))
    contender([WARM_UP])
    meter = Meter(task.device)
    for _ in range(runs):
        contender(sequences)
    return meter.peak_bytes()
