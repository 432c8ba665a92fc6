"""Numpy files and their links."""

from __future__ import annotations

import json
import os
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import redis.asyncio

from serving.errors import ExpiredOutput, StoreUnavailable, UnknownOutput
from serving.outputs import NpzWriter, OutputStore, describe, writing
from serving.parts import Options
from serving.pipeline import Report
from serving.redis import OUTPUT_PREFIX
from serving.runners import ServedModel
from serving.sequences import Protein


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


async def test_a_published_file_is_found_by_any_worker(outputs: OutputStore, client: redis.asyncio.Redis) -> None:
    request_id = await published(outputs)
    another = OutputStore(outputs.folder, client, ttl_s=60, writing_s=3600)
    assert (await another.find(request_id, "esm2_mini")).exists()


async def test_a_npz_in_memory_is_published_like_a_file(outputs: OutputStore) -> None:
    request_id, _ = outputs.new()
    npz = BytesIO()
    async with writing(npz) as writer:
        writer.add(0, np.ones(4, np.float16))
        writer.finish(["a"], {})
    await outputs.publish(request_id, "esm2_mini", npz)
    assert (await outputs.find(request_id, "esm2_mini")).read_bytes() == npz.getvalue()
    assert len(list(outputs.folder.iterdir())) == 1


def test_ids_cannot_be_guessed(outputs: OutputStore) -> None:
    ids = {outputs.new()[0] for _ in range(100)}
    assert len(ids) == 100
    assert all(len(id.partition("_")[2]) == 32 for id in ids)


@pytest.mark.parametrize(
    "hostile",
    ["", "1703123456_12345", "../../etc/passwd", "1703123456_" + "0" * 32, "*", "1703123456_" + "0" * 32 + "\n"],
)
async def test_an_unknown_or_hostile_id_is_not_found(outputs: OutputStore, hostile: str) -> None:
    with pytest.raises(UnknownOutput):
        await outputs.find(hostile, "esm2_mini")


async def test_another_models_link_is_not_found(outputs: OutputStore) -> None:
    request_id = await published(outputs)
    with pytest.raises(UnknownOutput):
        await outputs.find(request_id, "prot_t5")


async def test_what_is_somebody_elses_is_not_found_by_anybody_else(
    outputs: OutputStore, client: redis.asyncio.Redis
) -> None:
    request_id, path = outputs.new()
    NpzWriter(path).finish([], {})
    await outputs.publish(request_id, "esm2_mini", path, "alice")
    assert (await outputs.find(request_id, "esm2_mini", "alice")).exists()
    for other in ("bob", "anonymous", "Alice", "", "alice "):
        with pytest.raises(UnknownOutput, match=r"^no such download$"):
            await outputs.find(request_id, "esm2_mini", other)
    with pytest.raises(UnknownOutput):
        await outputs.find(request_id, "esm2_mini")
    # Whether it has expired is told to its owner alone
    await client.hset(OUTPUT_PREFIX + request_id, "expires_at", time.time() - 1)
    with pytest.raises(UnknownOutput):
        await outputs.find(request_id, "esm2_mini", "bob")
    with pytest.raises(ExpiredOutput):
        await outputs.find(request_id, "esm2_mini", "alice")


async def test_a_record_without_an_owner_is_nobodys(outputs: OutputStore, client: redis.asyncio.Redis) -> None:
    """As versions without keys wrote it."""
    request_id = await published(outputs)
    await client.hdel(OUTPUT_PREFIX + request_id, "owner")
    for name in ("anonymous", "alice"):
        with pytest.raises(UnknownOutput):
            await outputs.find(request_id, "esm2_mini", name)


async def test_an_expired_download_is_told_from_an_unknown_one(
    outputs: OutputStore, client: redis.asyncio.Redis
) -> None:
    request_id = await published(outputs)
    await client.hset(OUTPUT_PREFIX + request_id, "expires_at", time.time() - 1)
    with pytest.raises(ExpiredOutput, match="kept for 1 minutes"):
        await outputs.find(request_id, "esm2_mini")


async def test_sweeping_deletes_what_is_over_and_what_was_never_finished(outputs: OutputStore) -> None:
    kept, expired = await published(outputs), await published(outputs)
    _, unfinished = outputs.new()
    _, being_written = outputs.new()
    unfinished.touch()
    being_written.touch()
    now = time.time()
    os.utime(outputs.folder / f"{expired}.npz", (now - 61, now - 61))
    os.utime(unfinished, (now - 3601, now - 3601))
    assert outputs.sweep() == 2
    assert {path.name for path in outputs.folder.iterdir()} == {f"{kept}.npz", being_written.name}
    with pytest.raises(ExpiredOutput):
        await outputs.find(expired, "esm2_mini")


async def test_without_redis_nothing_is_published_and_nothing_is_left(
    dead_client: redis.asyncio.Redis, tmp_path: Path
) -> None:
    outputs = OutputStore(tmp_path / "outputs", dead_client, ttl_s=60, writing_s=3600)
    request_id, path = outputs.new()
    path.touch()
    for npz in (path, BytesIO(b"npz")):
        with pytest.raises(StoreUnavailable):
            await outputs.publish(request_id, "esm2_mini", npz)
        assert list(outputs.folder.iterdir()) == []
    with pytest.raises(StoreUnavailable):
        await outputs.find(request_id, "esm2_mini")


async def test_records_are_not_evicted_before_their_time_and_go_after_it(
    outputs: OutputStore, client: redis.asyncio.Redis
) -> None:
    old, new = await published(outputs), await published(outputs)
    assert await client.ttl(OUTPUT_PREFIX + old) == -1, "Redis evicts what expires"
    await client.zadd("pes:outputs", {old: 1})
    await outputs.forget()
    assert not await client.exists(OUTPUT_PREFIX + old)
    assert await client.exists(OUTPUT_PREFIX + new)


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
