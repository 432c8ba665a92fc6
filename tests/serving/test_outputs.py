"""Numpy files and their links."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import threading
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from serving import outputs as module
from serving.errors import ExpiredOutput, StoreUnavailable, UnknownOutput
from serving.outputs import NpzWriter, OutputStore, describe, writing
from serving.parts import Options
from serving.pipeline import Report
from serving.runners import ServedModel
from serving.sequences import Protein
from serving.threads import THREAD_BYTES


async def published(outputs: OutputStore, model: str = "esm2_mini") -> str:
    request_id, path = outputs.new()
    writer = NpzWriter(path)
    writer.finish([], {})
    link = await outputs.publish(request_id, model, path)
    assert link == f"/embeddings/download/{model}/numpy/{request_id}"
    return request_id


def test_a_file_is_written_in_any_order_and_read_without_pickle(tmp_path: Path) -> None:
    writer = NpzWriter(tmp_path / "x.npz")
    second, first = np.ones((3, 4), np.float16), np.zeros(4, np.float32)
    writer.add(1, second)
    writer.add(0, first)
    writer.finish(["a", "ünï/../code"], {"model": "esm2_mini"})
    with np.load(tmp_path / "x.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["embedding_0"], first)
        np.testing.assert_array_equal(arrays["embedding_1"], second)
        assert arrays["embedding_1"].dtype == np.float16
        assert arrays["ids"].tolist() == ["a", "ünï/../code"]
        assert int(arrays["sequence_count"]) == 2
        assert str(arrays["storage_type"]) == "list_of_arrays"
        assert json.loads(str(arrays["manifest"])) == {"model": "esm2_mini"}


def test_the_manifest_says_what_became_of_long_sequences(served: ServedModel) -> None:
    proteins = [Protein("a", "MKTAY"), Protein("b", "MKTAY", truncated_from=900)]
    report = Report(cached=[False, False], precision="fp32")
    manifest = describe(served, proteins, Options(), report)
    assert (manifest["truncated_from"], manifest["window"]) == ({"1": 900}, None)
    manifest = describe(served, proteins[:1], Options(window=4), report)
    assert (manifest["truncated_from"], manifest["window"]) == ({}, 4)


def test_an_abandoned_file_is_gone(tmp_path: Path) -> None:
    writer = NpzWriter(tmp_path / "x.part")
    writer.add(0, np.zeros(4, np.float16))
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


async def test_a_published_file_is_found_by_any_worker(outputs: OutputStore) -> None:
    request_id = await published(outputs)
    another = OutputStore(outputs.folder, ttl_s=60, writing_s=3600)
    assert another.find(request_id, "esm2_mini").exists()


async def test_a_npz_in_memory_is_published_like_a_file(outputs: OutputStore) -> None:
    request_id, _ = outputs.new()
    npz = BytesIO()
    async with writing(npz) as writer:
        writer.add(0, np.ones(4, np.float16))
        writer.finish(["a"], {})
    await outputs.publish(request_id, "esm2_mini", npz)
    assert (outputs.find(request_id, "esm2_mini")).read_bytes() == npz.getvalue()
    assert len(list(outputs.folder.iterdir())) == 1


def test_ids_cannot_be_guessed(outputs: OutputStore) -> None:
    ids = {outputs.new()[0] for _ in range(100)}
    assert len(ids) == 100
    assert all(len(id.partition("_")[2]) == 32 for id in ids)


@pytest.mark.parametrize("size_bytes", [2_000, 100_000])
async def test_small_files_need_no_thread_while_the_folder_is_quick(
    outputs: OutputStore, monkeypatch: pytest.MonkeyPatch, size_bytes: int
) -> None:
    """What a network's volume takes long for never keeps the event loop twice."""
    pauses_s = [0.0, 0.0, 0.1, 0.1, 0.0, 0.0]
    fails = [False, False, True, False, False, False]
    threads: list[bool] = []
    write = Path.write_bytes

    def seen(path: Path, data: bytes) -> int:
        time.sleep(pauses_s[len(threads)])
        threads.append(threading.current_thread() is not threading.main_thread())
        if fails[len(threads) - 1]:
            raise OSError(errno.EIO, "Input/output error")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", seen)
    monkeypatch.setattr(module, "QUICK_S", 0.05)
    for is_failing in fails:
        with pytest.raises(StoreUnavailable) if is_failing else contextlib.nullcontext():
            await outputs.publish(outputs.new()[0], "esm2_mini", BytesIO(bytes(size_bytes)))
    is_large = size_bytes > THREAD_BYTES
    assert threads == [True, is_large, is_large, True, True, is_large]


def aged(outputs: OutputStore, request_id: str, age_s: int) -> str:
    """The id of a published file, as if it had been made so long ago."""
    (path,) = outputs.folder.glob(f"{request_id}.*.npz")
    then = int(time.time()) - age_s
    older = path.rename(path.with_name(path.name.replace(request_id[:10], str(then))))
    os.utime(older, (then, then))
    return request_id.replace(request_id[:10], str(then))


@pytest.mark.parametrize(
    "hostile",
    ["", "1703123456_12345", "../../etc/passwd", "1703123456_" + "0" * 32, "*", "1703123456_" + "0" * 32 + "\n"],
)
def test_an_unknown_or_hostile_id_is_not_found(outputs: OutputStore, hostile: str) -> None:
    with pytest.raises(UnknownOutput):
        outputs.find(hostile, "esm2_mini")


async def test_another_models_link_is_not_found(outputs: OutputStore) -> None:
    request_id = await published(outputs)
    with pytest.raises(UnknownOutput):
        outputs.find(request_id, "prot_t5")


async def test_what_is_somebody_elses_is_not_found_by_anybody_else(outputs: OutputStore) -> None:
    request_id, path = outputs.new()
    NpzWriter(path).finish([], {})
    await outputs.publish(request_id, "esm2_mini", path, "alice")
    assert outputs.find(request_id, "esm2_mini", "alice").exists()
    for other in ("bob", "anonymous", "Alice", "", "alice "):
        with pytest.raises(UnknownOutput, match=r"^no such download$"):
            outputs.find(request_id, "esm2_mini", other)
    with pytest.raises(UnknownOutput):
        outputs.find(request_id, "esm2_mini")


async def test_an_expired_download_is_told_from_an_unknown_one(outputs: OutputStore) -> None:
    """For a day. To others it is as one that never was: of an old id nothing is known but its time."""
    request_id = await published(outputs)
    expired = aged(outputs, request_id, 61)
    never_was = expired[:11] + "0" * 32
    for id, owner in ((expired, "anonymous"), (expired, "bob"), (never_was, "anonymous")):
        with pytest.raises(ExpiredOutput, match=r"^downloads are kept for 1 minutes; ask for it again$"):
            outputs.find(id, "esm2_mini", owner)
    outputs.sweep()
    with pytest.raises(ExpiredOutput):
        outputs.find(expired, "esm2_mini")
    for age_s in (0, 59, 60 + 86_400):
        with pytest.raises(UnknownOutput):
            outputs.find(f"{int(time.time()) - age_s}_{'0' * 32}", "esm2_mini")


async def test_a_download_is_kept_from_when_it_was_finished(outputs: OutputStore) -> None:
    """A request may have taken longer than downloads are kept."""
    request_id = aged(outputs, await published(outputs), 3600)
    (path,) = outputs.folder.iterdir()
    os.utime(path)
    outputs.sweep()
    assert outputs.find(request_id, "esm2_mini") == path


async def test_sweeping_deletes_what_is_over_and_what_was_never_finished(outputs: OutputStore) -> None:
    kept, _ = await published(outputs), aged(outputs, await published(outputs), 60 + 61)
    _, unfinished = outputs.new()
    _, being_written = outputs.new()
    unfinished.touch()
    being_written.touch()
    now = time.time()
    os.utime(unfinished, (now - 3601, now - 3601))
    assert outputs.sweep() == 2
    assert set(outputs.folder.iterdir()) == {outputs.find(kept, "esm2_mini"), being_written}


@pytest.mark.parametrize("method", ["write_bytes", "rename"])
async def test_a_file_that_cannot_be_put_there_is_said_and_nothing_is_left(
    outputs: OutputStore, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    request_id, path = outputs.new()
    path.touch()

    def begin(path: Path, _: object) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, method, begin)
    with pytest.raises(StoreUnavailable, match="cannot be written \\(No space left on device"):
        await outputs.publish(request_id, "esm2_mini", path if method == "rename" else BytesIO(b"npz"))
    assert set(outputs.folder.iterdir()) <= {path}
    assert (method == "write_bytes") == path.exists()


async def test_a_folder_that_cannot_be_read_is_said(outputs: OutputStore) -> None:
    request_id = await published(outputs)
    outputs.folder.rename(outputs.folder.with_name("away"))
    outputs.folder.symlink_to(outputs.folder)
    with pytest.raises(StoreUnavailable, match="the outputs cannot be read"):
        outputs.find(request_id, "esm2_mini")


async def test_a_disk_that_is_full_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    path = tmp_path / "x.part"
    path.symlink_to("/dev/full")

    async def write() -> None:
        async with writing(path) as writer:
            writer.add(0, np.random.default_rng(0).random((1000, 100)))
            writer.finish(["a"], {})

    with pytest.raises(StoreUnavailable, match="No space left on device"):
        await write()
    assert list(tmp_path.iterdir()) == []
