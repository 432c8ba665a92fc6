"""The image that IMAGE names: what is in it, and that it serves as anybody, cut off from everything.

make bento; (make an image of it with buildah); IMAGE=pes:test .venv/bin/python -m pytest -m image
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.redis import find_server
from tests.image.container import Container, Image, no_network

IMAGE = os.environ.get("IMAGE", "")
MAX_BYTES = 1.6e9
OWN_USER = "1034:1034"  # of BentoML's images
ANYBODY = "54321:0"  # as OpenShift gives it

pytestmark = [
    pytest.mark.image,
    pytest.mark.skipif(not IMAGE, reason="IMAGE names no image"),
    pytest.mark.skipif(os.geteuid() != 0 or shutil.which("buildah") is None, reason="needs buildah, as root"),
]


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    with Image.mounted(IMAGE) as found:
        yield found


@contextmanager
def redis_server(network: Sequence[str], folder: Path) -> Iterator[str]:
    """The URL of a Redis that the service finds there."""
    command = [*network, str(find_server()), "--port", "6379", "--dir", str(folder), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield "redis://127.0.0.1:6379/0"
        finally:
            process.terminate()


@pytest.fixture
def network() -> Iterator[list[str]]:
    with no_network() as prefix:
        yield prefix


def without_versions(image: Image) -> str:
    variables = dict(entry.split("=", 1) for entry in image.config["Env"])
    return ",".join(entry.partition(":")[0] for entry in variables["MODELS"].split(","))


def test_it_is_small(image: Image) -> None:
    assert image.size_bytes < MAX_BYTES


def test_it_is_nobodys_root_and_knows_no_secret(image: Image) -> None:
    assert image.config["User"] == "bentoml"
    variables = dict(entry.split("=", 1) for entry in image.config["Env"])
    assert variables["BENTOML_DO_NOT_TRACK"] == "1"
    assert not [name for name in variables if "KEY" in name or "PASSWORD" in name or "TOKEN" in name]


def test_nothing_is_in_it_that_serves_no_request(image: Image) -> None:
    folders = [image.root / "usr" / "bin", image.root / "usr" / "local" / "bin"]
    unwanted = ("gcc", "cc", "make", "uvx")
    assert [name for name in unwanted for folder in folders if (folder / name).exists()] == []
    (packages,) = (image.root / "app" / ".venv" / "lib").glob("python3*/site-packages")
    installed = {path.name for path in packages.iterdir()}
    assert not installed & {"pip", "uv", "pytest", "mypy", "nvidia", "triton", "matplotlib"}
    assert list(packages.rglob("tests")) == []
    bento = image.root / "home" / "bentoml" / "bento"
    assert {path.name for path in (bento / "src").iterdir()} == {
        *("service.py", "models", "serving", "requirements.txt", "bentofile.yaml")
    }
    for folder in ("root", "tmp", "var/tmp"):
        assert list((image.root / folder).rglob("*.whl")) == []


@pytest.mark.parametrize("user", [OWN_USER, ANYBODY], ids=["own user", "anybody"])
@pytest.mark.parametrize("has_redis", [False, True], ids=["own redis", "REDIS_URL"])
def test_it_serves_read_only_and_without_a_network(
    image: Image, network: list[str], tmp_path: Path, user: str, has_redis: bool
) -> None:
    """Once as it is; once with a Redis, and with the models named anew, in the versions that it has."""
    with redis_server(network, tmp_path) as url:
        environment = {"REDIS_URL": url, "MODELS": without_versions(image)} if has_redis else {}
        container = Container(image, network, user, tmp_path / "log", environment)
        try:
            seconds = container.wait_until_ready()
            print(f"ready after {seconds:.1f} s")
            assert container.demo() == 0
            uid, gid = map(int, user.split(":"))
            assert container.users == {(uid, gid)}
        finally:
            status = container.stop()
    log = (tmp_path / "log").read_text()
    assert status == 0, log
    assert "Traceback" not in log
    assert "Read-only" not in log
