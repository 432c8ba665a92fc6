"""An image of buildah's store, run as a cluster might: as any user, a root that cannot be written to, no network.

podman has the same store. Docker's images come there by `docker save` and `buildah pull docker-archive:FILE`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from scripts.local_service import ROOT

PORT = 3000
TMPFS = "mode=1777,size=1g"
START_TIMEOUT_S = 120.0
# $1: the root; $2: the user; then what to run there
_ISOLATE = f"""
echo 127.0.0.1 localhost > "$1/etc/hosts"
mount --bind "$1" "$1" && mount -o remount,bind,ro "$1"
mount -t proc proc "$1/proc" && mount --rbind /dev "$1/dev" && mount -t tmpfs -o {TMPFS} tmpfs "$1/tmp"
root=$1 user=$2; shift 2
exec setpriv --no-new-privs chroot --userspec="$user" "$root" "$@"
"""


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode()


@dataclass(frozen=True)
class Image:
    """What the image says of itself, and its files, mounted."""

    name: str
    root: Path
    config: dict[str, Any]
    size_bytes: int

    @classmethod
    @contextmanager
    def mounted(cls, name: str) -> Iterator[Image]:
        found = json.loads(output_of("buildah", "inspect", "--type", "image", name))
        (size,) = {image["size"] for image in json.loads(output_of("buildah", "images", "--json", name))}
        container = output_of("buildah", "from", "--pull-never", name).strip()
        try:
            root = Path(output_of("buildah", "mount", container).strip())
            yield cls(name, root, found["OCIv1"]["config"], _bytes_of(size))
        finally:
            output_of("buildah", "rm", container)


def _bytes_of(size: str) -> int:
    """Of a text like `1.59 GB`."""
    number, unit = size.split()
    return int(float(number) * {"MB": 1e6, "GB": 1e9}[unit])


@contextmanager
def no_network() -> Iterator[list[str]]:
    """The beginning of commands that run where there is a loopback and nothing else."""
    with subprocess.Popen(
        ["unshare", "--net", "sh", "-c", "ip link set lo up && echo up && exec sleep inf"], stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        try:
            assert holder.stdout.readline() == b"up\n"
            yield ["nsenter", "--target", str(holder.pid), "--net"]
        finally:
            holder.kill()


class Container:
    """The image's own command, from its start to its end.

    network: how commands that see it begin.
    """

    def __init__(
        self, image: Image, network: list[str], user: str, log: Path, environment: Mapping[str, str]
    ) -> None:
        self._network = network
        self._log = log
        own = [*image.config["Env"], *(f"{name}={value}" for name, value in environment.items())]
        inside = ["env", "-i", "-C", image.config["WorkingDir"], *own, *image.config["Entrypoint"], "serve"]
        isolate = [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--ipc",
            "sh",
            "-euc",
            _ISOLATE,
            "isolate",
        ]
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [*network, *isolate, str(image.root), user, *inside], stdout=file, stderr=subprocess.STDOUT
            )

    def wait_until_ready(self) -> float:
        """Returns after how many seconds it was."""
        started = time.monotonic()
        while self.run("curl", "-sf", "-o", "/dev/null", f"http://127.0.0.1:{PORT}/readyz") != 0:
            assert self.process.poll() is None, self._log.read_text()
            assert time.monotonic() - started < START_TIMEOUT_S, self._log.read_text()
            time.sleep(0.2)
        return time.monotonic() - started

    def run(self, *command: str) -> int:
        """Where the service can be reached; the exit status."""
        return subprocess.run([*self._network, *command], cwd=ROOT, check=False).returncode

    def demo(self) -> int:
        return self.run(sys.executable, "-m", "scripts.demo", "--url", f"http://127.0.0.1:{PORT}")

    @property
    def users(self) -> set[tuple[int, int]]:
        """Effective user and group of every process inside."""
        (main,) = psutil.Process(self.process.pid).children()
        return {(one.uids().effective, one.gids().effective) for one in (main, *main.children(recursive=True))}

    def stop(self) -> int:
        """With SIGTERM to its first process; the exit status."""
        if self.process.poll() is None:
            for main in psutil.Process(self.process.pid).children():
                main.terminate()
        try:
            return self.process.wait(60)
        finally:
            self.process.kill()
