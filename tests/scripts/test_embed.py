"""The command line for FASTA files, against the real service: stopped, cut off, cancelled; and without one."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import h5py
import httpx
import numpy as np
import pytest
from pyarrow import parquet

from models.engine import Engine, Item
from scripts import import_model
from scripts.embed import main
from scripts.embedding import progress
from scripts.local_service import ROOT, LocalService
from serving.results import PARQUET_KEY
from serving.sequences import Record, parse_fasta
from tests.models.references import random_sequence
from tests.models.stores import own_store

PROTEINS = ROOT / "examples" / "proteins.fasta"
# Precision is fixed so that the tests mean the same on every processor
SETTINGS = {"MODELS": "esm2_mini", "PRECISION": "fp32", "GATEWAY_WORKERS": "1"}
DEADLINE_S = 60.0


class Deployment:
    """A service that can be taken away and brought back: one data folder, one address."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self._service = LocalService(data_dir, {})
        self._role = ""
        self.url = self._service.url

    def has(self, role: Literal["api", "all"]) -> Deployment:
        """Running, in this role; as `api` it leaves jobs in the queue."""
        if self._role != role:
            self.stop()
            self._service = LocalService(self.data_dir, {**SETTINGS, "ROLE": role})
            self._service.url = self.url
            self._service.__enter__()
            self._role = role
        return self

    def stop(self) -> None:
        if self._role:
            self._service.stop()
            self._role = ""

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, **options).raise_for_status()

    def submit(self, fasta: Path, **options: Any) -> str:
        reply = httpx.post(
            f"{self.url}/embeddings/jobs/submit",
            params={"model": "esm2_mini", **options},
            headers={"content-type": "text/x-fasta"},
            content=fasta.read_bytes(),
        )
        job_id: str = reply.raise_for_status().json()["job_id"]
        return job_id

    def embed(self, records: Sequence[Record], **options: Any) -> dict[str, np.ndarray]:
        """By the interactive route."""
        reply = httpx.post(
            f"{self.url}/embeddings/compute/esm2_mini",
            params=options,
            headers={"content-type": "text/x-fasta", "accept": "application/x-npz"},
            content=to_fasta(records),
            timeout=60,
        )
        return read(io.BytesIO(reply.raise_for_status().content), "npz")[0]


@pytest.fixture(scope="module")
def stored_model() -> None:
    import_model.main(["esm2_mini"])


@pytest.fixture(scope="module")
def deployment(stored_model: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    found = Deployment(tmp_path_factory.mktemp("embed"))
    yield found
    found.stop()


@pytest.fixture
def idle(deployment: Deployment) -> Deployment:
    """The service that takes jobs and does not work on them."""
    return deployment.has("api")


@pytest.fixture
def served(deployment: Deployment) -> Deployment:
    return deployment.has("all")


@pytest.fixture
def here(stored_model: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """--local with the settings of the service."""
    monkeypatch.setenv("PRECISION", SETTINGS["PRECISION"])


Run = Callable[..., "Ended"]


class Ended:
    """What a run left behind."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the script in this process."""

    def run_script(*arguments: str | Path) -> Ended:
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert isinstance(stop.value.code, int)
        return Ended(stop.value.code, out, err)

    return run_script


def start(*arguments: str | Path) -> subprocess.Popen[str]:
    """Runs the script in a process of its own."""
    command = [sys.executable, "-m", "scripts.embed", *(str(argument) for argument in arguments)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores it
    )


def to_fasta(records: Sequence[Record]) -> str:
    return "".join(f">{record.id} something\n{record.sequence}\n" for record in records)


def write_fasta(path: Path, *sequences: tuple[str, str]) -> Path:
    path.write_text(to_fasta([Record(id, sequence) for id, sequence in sequences]))
    return path


def read(file: Path | io.BytesIO, format: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Embeddings by id in the order of the file, and what the file says of itself."""
    if format == "h5":
        with h5py.File(file, "r") as h5:
            return {id: h5[id][()] for id in h5}, {name: plain(value) for name, value in h5.attrs.items()}
    if format == "npz":
        with np.load(file, allow_pickle=False) as npz:
            found = {str(id): npz.get(f"embedding_{index}") for index, id in enumerate(npz["ids"])}
            return {id: rows for id, rows in found.items() if rows is not None}, json.loads(str(npz["manifest"]))
    table = parquet.read_table(file)
    about = json.loads(table.schema.metadata[PARQUET_KEY.encode()])
    about["errors"] = {row["id"]: row["error"] for row in table.to_pylist() if row["error"] is not None}
    rows = [(row["id"], row["embedding"]) for row in table.to_pylist() if row["embedding"] is not None]
    return {id: np.array(values, about["dtype"]) for id, values in rows}, about


def plain(value: Any) -> Any:
    """An attribute of HDF5 as it was before."""
    return json.loads(value) if isinstance(value, str) and (value[0] in "{[" or value == "null") else value


def assert_equal(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for id in expected:
        assert found[id].dtype == expected[id].dtype
        np.testing.assert_array_equal(found[id], expected[id])


def interrupt(deployment: Deployment, output: Path) -> tuple[int, str, str]:
    """Submits, presses Ctrl-C: status, id of the job, and the command to come back with."""
    process = start(PROTEINS, "-o", output, "--model", "esm2_mini", "--url", deployment.url)
    assert process.stdout is not None
    line = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=DEADLINE_S)
    match = re.match(r"job (\S+): 12 sequences, \d+ residues", line)
    assert match is not None, err
    return process.returncode, match[1], err.splitlines()[-1]


def test_ctrl_c_leaves_the_job_and_prints_the_command_to_come_back(idle: Deployment, tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    status, job_id, command = interrupt(idle, output)
    assert status == 130
    assert command == f"python -m scripts.embed --job {job_id} -o {output} --url {idle.url}"
    assert idle.get(f"/embeddings/jobs/{job_id}").json()["status"] == "queued"
    assert list(tmp_path.iterdir()) == []


def test_a_job_is_cancelled_by_its_id(idle: Deployment, tmp_path: Path, run: Run) -> None:
    job_id = idle.submit(PROTEINS)
    ended = run("--job", job_id, "--cancel", "--url", idle.url)
    assert (ended.status, ended.out, ended.err) == (0, f"job {job_id}: cancelled\n", "")
    assert idle.get(f"/embeddings/jobs/{job_id}").json()["status"] == "cancelled"
    ended = run("--job", job_id, "-o", tmp_path / "out.npz", "--url", idle.url)
    assert (ended.status, ended.err) == (1, f"embed: job {job_id} was cancelled\n")
    assert list(tmp_path.iterdir()) == []


def test_a_service_that_is_away_is_waited_for(deployment: Deployment, tmp_path: Path) -> None:
    output = tmp_path / "out.h5"
    _, _, command = interrupt(deployment.has("api"), output)
    deployment.stop()
    process = start(*shlex.split(command)[3:])
    assert process.stderr is not None
    first = process.stderr.readline()
    assert first.startswith(f"{deployment.url} does not answer (")
    deployment.has("all")
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, err
    assert f"{deployment.url} answers again" in err.splitlines()  # there may be lines of progress too
    assert out.startswith(f"{output}: 12 embeddings, ")
    assert len(read(output, "h5")[0]) == 12


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("out.h5", {}),
        ("out.HDF5", {"per-residue": True, "dtype": "float32"}),
        ("out.npz", {"per-residue": True, "on-too-long": "window", "max-length": 256}),
        ("out.parquet", {"on-too-long": "truncate", "max-length": 100}),
        ("out.embeddings", {"format": "npz"}),
    ],
)
def test_values_are_those_of_the_interactive_route(
    served: Deployment, tmp_path: Path, run: Run, name: str, options: dict[str, Any]
) -> None:
    output = tmp_path / name
    words = [f"--{name}" if value is True else f"--{name}={value}" for name, value in options.items()]
    ended = run(PROTEINS, "-o", output, "--model", "esm2_mini", "--url", served.url, *words)
    assert (ended.status, ended.err) == (0, "")
    assert re.fullmatch(
        rf"job \d+_\w+: 12 sequences, \d+ residues(, \d+ cut off)?\n"
        rf"{output}: 12 embeddings, \S+B; \d+% were in the cache\n",
        ended.out,
    )
    asked = {name.replace("-", "_"): value for name, value in options.items() if name != "format"}
    expected = served.embed(parse_fasta(PROTEINS.read_text()), pooled=not asked.pop("per_residue", False), **asked)
    format = options.get("format") or {".npz": "npz", ".parquet": "parquet"}.get(output.suffix, "h5")
    found, _ = read(output, format)
    if format == "h5":  # which lists ids by name
        expected = dict(sorted(expected.items()))
    assert list(found) == list(expected)
    assert_equal(found, expected)
    assert list(tmp_path.iterdir()) == [output]


def test_gzip_is_taken_as_it_is(served: Deployment, tmp_path: Path, run: Run) -> None:
    packed = tmp_path / "proteins.fasta.gz"
    packed.write_bytes(gzip.compress(PROTEINS.read_bytes()))
    ended = run(packed, "-o", tmp_path / "out.npz", "--model", "esm2_mini", "--url", served.url)
    assert ended.status == 0, ended.err
    found, _ = read(tmp_path / "out.npz", "npz")
    assert_equal(found, served.embed(parse_fasta(PROTEINS.read_text())))


WRONG = [(f"wrong_{index}", "MKTAYIAKQJ") for index in range(7)]


@pytest.mark.parametrize("where", ["service", "local"])
def test_sequences_that_cannot_be_embedded_are_named_and_stop_nothing(
    served: Deployment, here: None, tmp_path: Path, run: Run, where: str
) -> None:
    fasta = write_fasta(tmp_path / "in.fasta", *WRONG, ("right", "MKTAYIAKQR"), ("short", "MK"))
    output = tmp_path / "out.h5"
    target = ["--local"] if where == "local" else ["--url", served.url]
    ended = run(fasta, "-o", output, "--model", "esm2_mini", *target)
    assert ended.status == 0
    assert "9 sequences, 10 residues\n" in ended.out
    assert f"{output}: 1 embeddings (8 failed), " in ended.out
    lines = ended.err.splitlines()
    assert lines[0] == "8 of 9 sequences cannot be embedded:"
    assert lines[1].startswith("  sequence 0 (wrong_0): 'J' at position 10 is leucine or isoleucine")
    assert lines[5].startswith("  sequence 4 (wrong_4): ")
    assert lines[6] == "  and 3 more; the result names them all"
    found, about = read(output, "h5")
    assert list(found) == ["right"]
    assert about["errors"]["short"] == "2 residues; the least is 10"
    assert len(about["errors"]) == 8


@pytest.mark.parametrize("where", ["service", "local"])
@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        (
            [("a", "MKTAYIAKQR"), ("b", "MKTAYIAKQR"), ("a", "MKTAYIAKQR")],
            "sequences 0 and 2 have the same id, 'a'",
        ),
        (WRONG, "'J' at position 10"),
        ([("a/b", "MKTAYIAKQR")], "the id 'a/b' cannot be kept in h5"),
    ],
)
def test_what_no_job_can_be_made_of_is_refused(
    served: Deployment,
    here: None,
    tmp_path: Path,
    run: Run,
    where: str,
    sequences: list[tuple[str, str]],
    message: str,
) -> None:
    fasta = write_fasta(tmp_path / "in.fasta", *sequences)
    target = ["--local"] if where == "local" else ["--url", served.url]
    ended = run(fasta, "-o", tmp_path / "out.h5", "--model", "esm2_mini", *target)
    assert ended.status == 1
    assert ended.err.startswith("embed: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [fasta]


@pytest.mark.parametrize(
    ("job", "message"), [("nothing", "embed: no such job\n"), ("../models", "embed: ")], ids=["unknown", "a path"]
)
def test_an_unknown_job_is_told_in_one_line(
    served: Deployment, tmp_path: Path, run: Run, job: str, message: str
) -> None:
    ended = run("--job", job, "-o", tmp_path / "out.h5", "--url", served.url)
    assert ended.status == 1
    assert ended.err.startswith(message)
    assert ended.err.count("\n") == 1


def test_a_result_that_is_gone_leaves_nothing(served: Deployment, tmp_path: Path, run: Run) -> None:
    job_id = served.submit(PROTEINS, format="h5")
    assert run("--job", job_id, "-o", tmp_path / "out.h5", "--url", served.url).status == 0
    (tmp_path / "out.h5").unlink()
    shutil.rmtree(served.data_dir / "jobs" / job_id)
    ended = run("--job", job_id, "-o", tmp_path / "out.h5", "--url", served.url)
    assert (ended.status, ended.err) == (1, "embed: the file of this result is gone\n")
    assert list(tmp_path.iterdir()) == []


def test_a_job_that_is_done_cannot_be_cancelled_and_has_its_own_format(
    served: Deployment, tmp_path: Path, run: Run
) -> None:
    job_id = served.submit(PROTEINS, format="h5")
    assert run("--job", job_id, "-o", tmp_path / "out.h5", "--url", served.url).status == 0
    ended = run("--job", job_id, "--cancel", "--url", served.url)
    assert (ended.status, ended.out) == (1, f"job {job_id}: done\n")
    ended = run("--job", job_id, "-o", tmp_path / "out.npz", "--url", served.url)
    assert (ended.status, ended.err) == (2, f"embed: the result of job {job_id} is h5, not npz\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "out.h5"]


class Proxy:
    """Between the script and the service: the n-th connection is cut behind so many bytes that came back by it.

    limits: of the first connections; those after them are left alone. passed: bytes that came back by all.
    """

    def __init__(self, target: str, limits: Sequence[int]) -> None:
        self._target = httpx.URL(target)
        self._limits = iter(limits)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept)]
        self._sockets = [self._listener]
        self.passed = 0
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads[0].start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection((self._target.host, self._target.port))
                self._sockets += [near, far]
                limit = next(self._limits, sys.maxsize)
                self._start(self._forth, near, far)
                self._start(self._back, far, near, limit)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        self._threads.append(threading.Thread(target=work, args=arguments))
        self._threads[-1].start()

    def _forth(self, near: socket.socket, far: socket.socket) -> None:
        with suppress(OSError):
            while block := near.recv(65_536):
                far.sendall(block)
            far.shutdown(socket.SHUT_WR)

    def _back(self, far: socket.socket, near: socket.socket, limit: int) -> None:
        with suppress(OSError):
            while block := far.recv(65_536):
                near.sendall(block[:limit])
                self.passed += len(block[:limit])
                limit -= len(block)
                if limit <= 0:
                    break
        with suppress(OSError):
            near.shutdown(socket.SHUT_RDWR)


def test_a_submission_whose_reply_was_lost_is_one_job(served: Deployment, tmp_path: Path, run: Run) -> None:
    before = served.get("/embeddings/jobs").json()["total"]
    with Proxy(served.url, [0]) as proxy:
        ended = run(PROTEINS, "-o", tmp_path / "out.npz", "--model", "esm2_mini", "--url", proxy.url)
    assert ended.status == 0, ended.err
    assert f"{proxy.url} does not answer (" in ended.err
    assert served.get("/embeddings/jobs").json()["total"] == before + 1


@pytest.fixture(scope="module")
def finished(deployment: Deployment) -> tuple[str, bytes]:
    """A job that is done, of some hundred kilobytes: its id and its file."""
    deployment.has("all")
    job_id = deployment.submit(PROTEINS, pooled=False, format="h5")
    for _ in deployment.get(f"/embeddings/jobs/{job_id}/events", timeout=DEADLINE_S).iter_lines():
        pass
    return job_id, deployment.get(f"/embeddings/jobs/{job_id}/result").content


def test_a_download_that_is_cut_off_goes_on_where_it_was(
    served: Deployment, finished: tuple[str, bytes], tmp_path: Path, run: Run
) -> None:
    job_id, content = finished
    limits = [len(content) // 3, len(content) // 2]
    with Proxy(served.url, limits) as proxy:
        ended = run("--job", job_id, "-o", tmp_path / "out.h5", "--url", proxy.url)
    assert ended.status == 0, ended.err
    assert (tmp_path / "out.h5").read_bytes() == content
    assert proxy.passed < len(content) + 10_000  # nothing twice, but for what each connection had not handed on
    assert list(tmp_path.iterdir()) == [tmp_path / "out.h5"]


@pytest.mark.parametrize("is_of_this_result", [True, False])
def test_a_part_is_completed_if_it_is_one_of_this_result(
    served: Deployment, finished: tuple[str, bytes], tmp_path: Path, run: Run, is_of_this_result: bool
) -> None:
    """The part has a byte of its own, by which it is known whether it was kept."""
    job_id, content = finished
    etag = served.get(f"/embeddings/jobs/{job_id}/result").headers["etag"]
    part = b"?" + content[1 : len(content) // 2]
    (tmp_path / "out.h5.part").write_bytes(part)
    (tmp_path / "out.h5.part.etag").write_text(etag if is_of_this_result else '"another"')
    assert run("--job", job_id, "-o", tmp_path / "out.h5", "--url", served.url).status == 0
    expected = part + content[len(part) :] if is_of_this_result else content
    assert (tmp_path / "out.h5").read_bytes() == expected
    assert list(tmp_path.iterdir()) == [tmp_path / "out.h5"]


def test_a_part_that_is_longer_than_the_result_is_none_of_it(
    served: Deployment, finished: tuple[str, bytes], tmp_path: Path, run: Run
) -> None:
    job_id, content = finished
    (tmp_path / "out.h5.part").write_bytes(content + b"?")
    (tmp_path / "out.h5.part.etag").write_text(served.get(f"/embeddings/jobs/{job_id}/result").headers["etag"])
    assert run("--job", job_id, "-o", tmp_path / "out.h5", "--url", served.url).status == 0
    assert (tmp_path / "out.h5").read_bytes() == content


def test_a_part_that_lacks_nothing_is_done(
    served: Deployment, finished: tuple[str, bytes], tmp_path: Path, run: Run
) -> None:
    job_id, content = finished
    etag = served.get(f"/embeddings/jobs/{job_id}/result").headers["etag"]
    (tmp_path / "out.h5.part").write_bytes(content)
    (tmp_path / "out.h5.part.etag").write_text(etag)
    ended = run("--job", job_id, "-o", tmp_path / "out.h5", "--url", served.url)
    assert ended.status == 0, ended.err
    assert (tmp_path / "out.h5").read_bytes() == content


def test_a_part_that_another_command_writes_is_left_alone(
    served: Deployment, finished: tuple[str, bytes], tmp_path: Path, run: Run
) -> None:
    part = tmp_path / "out.h5.part"
    with part.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        ended = run("--job", finished[0], "-o", tmp_path / "out.h5", "--url", served.url)
    assert (ended.status, ended.err) == (1, f"embed: another command is writing {part}\n")
    assert list(tmp_path.iterdir()) == [part]


def test_an_output_is_overwritten_by_force_alone(
    served: Deployment, finished: tuple[str, bytes], tmp_path: Path, run: Run
) -> None:
    job_id, content = finished
    output = tmp_path / "out.h5"
    output.write_bytes(b"mine")
    ended = run("--job", job_id, "-o", output, "--url", served.url)
    assert ended.status == 2
    assert f"{output} is there already; --force overwrites it" in ended.err
    assert output.read_bytes() == b"mine"
    assert run("--job", job_id, "-o", output, "--url", served.url, "--force").status == 0
    assert output.read_bytes() == content


LONG = random_sequence(700, seed=1)
MIXED = [
    *(("wrong", "MKTAYIAKQJ"), ("z", "mktayiakqr*"), ("long", LONG), ("a", random_sequence(90, seed=2))),
    *(("long_too", LONG), ("b", random_sequence(40, seed=3)), ("u", "MKTAYUAKQRBZ")),
]


@pytest.mark.parametrize(
    ("name", "options", "batch_tokens"),
    [
        ("out.h5", [], ""),
        ("out.npz", ["--per-residue", "--on-too-long", "window", "--max-length", "256"], ""),
        ("out.parquet", ["--on-too-long", "truncate", "--max-length", "300"], "64"),  # a window holds 256 tokens
    ],
)
def test_the_file_is_the_same_without_the_service(
    served: Deployment,
    here: None,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    options: list[str],
    batch_tokens: str,
) -> None:
    monkeypatch.setenv("BATCH_TOKENS", batch_tokens)
    fasta = write_fasta(tmp_path / "in.fasta", *MIXED)
    asked = [fasta, "--model", "esm2_mini", "--dtype", "float32", *options]
    assert run(*asked, "-o", tmp_path / f"served_{name}", "--url", served.url).status == 0
    ended = run(*asked, "-o", tmp_path / f"local_{name}", "--local")
    assert ended.status == 0, ended.err
    format = name.rpartition(".")[2]
    (found, about), (expected, expected_about) = (
        read(tmp_path / f"{where}_{name}", format) for where in ("local", "served")
    )
    assert expected_about.pop("job_id")
    assert about == expected_about
    assert list(found) == list(expected)
    assert set(found) == {id for id, _ in MIXED} - {"wrong"}
    for id in expected:
        # The batches differ. torch's products gave equal bits all the same on an AMX processor; others may not
        np.testing.assert_allclose(found[id], expected[id], rtol=0, atol=5e-6)
        assert found[id].dtype == np.float32


def test_equal_sequences_are_computed_once_here(
    here: None, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[str] = []
    embed = Engine.embed

    def counted(self: Engine, items: Sequence[Item]) -> Any:
        computed.extend(item.sequence for item in items)
        return embed(self, items)

    monkeypatch.setattr(Engine, "embed", counted)
    fasta = write_fasta(tmp_path / "in.fasta", *((str(index), "MKTAYIAKQR") for index in range(5)))
    assert run(fasta, "-o", tmp_path / "out.npz", "--model", "esm2_mini", "--local").status == 0
    assert computed == ["MKTAYIAKQR"]
    found, _ = read(tmp_path / "out.npz", "npz")
    assert list(found) == ["0", "1", "2", "3", "4"]


def test_a_sequence_that_fails_here_is_named(
    here: None, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Engine, items: Sequence[Item]) -> list[Exception]:
        return [ArithmeticError("no number") for _ in items]

    monkeypatch.setattr(Engine, "embed", fail)
    fasta = write_fasta(tmp_path / "in.fasta", ("a", "MKTAYIAKQR"), ("b", "MKTAYIAKQJ"))
    ended = run(fasta, "-o", tmp_path / "out.npz", "--model", "esm2_mini", "--local")
    assert ended.status == 0
    assert "2 of 2 sequences cannot be embedded:\n  sequence 0: no number\n" in ended.err
    assert read(tmp_path / "out.npz", "npz")[1]["errors"]["0"] == "no number"


def test_what_was_said_of_a_download_is_forgotten_when_its_part_is_overwritten(
    here: None, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "out.npz.part").write_bytes(b"of a download")
    (tmp_path / "out.npz.part.etag").write_text('"of a download"')
    assert run(PROTEINS, "-o", tmp_path / "out.npz", "--model", "esm2_mini", "--local").status == 0
    assert list(tmp_path.iterdir()) == [tmp_path / "out.npz"]
    assert len(read(tmp_path / "out.npz", "npz")[0]) == 12


def test_a_model_that_the_store_lacks_is_told_with_the_command_that_brings_it(tmp_path: Path, run: Run) -> None:
    with own_store(tmp_path / "models"):
        ended = run(PROTEINS, "-o", tmp_path / "out.npz", "--model", "esm2_t12_35M", "--local")
    assert ended.status == 1
    assert "esm2_t12_35M is not in the BentoML model store" in ended.err
    assert "`python -m scripts.import_model esm2_t12_35M`" in ended.err


def test_ctrl_c_leaves_nothing_where_nothing_goes_on(
    here: None, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press_ctrl_c(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(progress.Progress, "show", press_ctrl_c)
    ended = run(PROTEINS, "-o", tmp_path / "out.npz", "--model", "esm2_mini", "--local")
    assert ended.status == 130
    assert ended.err.splitlines()[-1] == "embed: stopped"
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written_leaves_nothing(here: None, tmp_path: Path, run: Run) -> None:
    (tmp_path / "out.npz.part").symlink_to("/dev/full")
    ended = run(PROTEINS, "-o", tmp_path / "out.npz", "--model", "esm2_mini", "--local")
    assert ended.status == 1
    assert "No space left on device" in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "out.h5"], "name a FASTA file, or a job with --job"),
        ([PROTEINS, "--job", "1", "-o", "out.h5"], "name a FASTA file, or a job with --job"),
        ([PROTEINS, "-o", "out.h5"], "--model is missing"),
        ([PROTEINS, "--model", "esm2_mini"], "-o is missing"),
        (["none.fasta", "-o", "out.h5", "--model", "esm2_mini"], "none.fasta is no file"),
        ([PROTEINS, "-o", "out.csv", "--model", "esm2_mini"], "end it in .npz, .h5, .hdf5, .parquet"),
        (
            [PROTEINS, "-o", "out.h5", "--model", "esm2_mini", "--format", "npz"],
            "the name says h5, --format says npz",
        ),
        ([PROTEINS, "-o", "out.parquet", "--model", "esm2_mini", "--per-residue"], "parquet is for pooled"),
        ([PROTEINS, "-o", "no/out.h5", "--model", "esm2_mini"], "no/out.h5 cannot be written"),
        ([PROTEINS, "-o", "out.h5", "--model", "esm2_mini", "--max-length", "0"], "--max-length: Input should be"),
        ([PROTEINS, "-o", "out.h5", "--model", "esm2_mini", "--url", "localhost:3000"], "--url: localhost:3000"),
        (
            [PROTEINS, "-o", "out.h5", "--model", "esm2_mini", "--local", "--url", "http://a"],
            "not go with --local",
        ),
        (["--job", "1", "-o", "out.h5", "--per-residue"], "--per-residue goes with a FASTA file, not with --job"),
        (["--job", "1", "-o", "out.h5", "--cancel"], "--cancel goes with --job alone"),
    ],
)
def test_a_command_that_makes_no_sense_is_refused(
    arguments: list[str | Path], message: str, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = run(*arguments)
    assert ended.status == 2
    assert message in ended.err
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_a_bar_with_state_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    monkeypatch.setattr(progress, "BAR_EVERY_S", 0.0)
    with progress.Progress() as shown:
        shown.show("queued", 0, 10_000, "residues")
        shown.show("running", 5_000, 10_000, "residues", rate=500.0)
        shown.note("something")
    text = terminal.getvalue()
    assert "queued" in text
    assert re.search(r"running  50% \|[^|]+\| 5.00k/10.0k residues, 500/s, 00:10 left", text)
    assert "something\n" in text
    assert text.endswith("\r")  # the bar is gone


def test_a_log_file_sees_a_plain_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.Progress() as shown:
        shown.show("running", 10, 10_000, "residues", rate=10.0)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with progress.Progress() as shown:
        shown.show("running", 5_000, 10_000, "residues", rate=500.0)
    assert capsys.readouterr().err == "running: 50%, 5.00k/10.0k residues, 500/s, 00:10 left\n"
