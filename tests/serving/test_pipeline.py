"""The path of a request, with a runner that counts residues and a real Redis."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
import redis.asyncio

from models.catalogue import MINI
from serving import pipeline as pipeline_module
from serving.cache import Cache
from serving.errors import DeadlineExceeded, InferenceFailed, RunnerUnavailable
from serving.pipeline import MemorySink, Options, Pipeline, Report
from serving.runners import ServedModel
from tests.serving.conftest import CountingRunner, proteins

PER_RESIDUE = Options(pooled=False)


async def run(
    pipeline: Pipeline, served: ServedModel, *sequences: str, options: Options = Options()
) -> tuple[dict[int, np.ndarray], Report]:
    sink = MemorySink()
    report = await pipeline.embed(served, proteins(*sequences), options, sink)
    return sink.embeddings, report


async def test_pooled_embeddings_come_in_the_order_of_the_request(pipeline: Pipeline, served: ServedModel) -> None:
    embeddings, report = await run(pipeline, served, "MKTAY", "MK", "MKTAYMKTAY")
    assert [embeddings[i].shape for i in range(3)] == [(MINI.dim,)] * 3
    assert [embeddings[i][0] for i in range(3)] == [5, 2, 10]
    assert embeddings[0].dtype == np.float16
    assert report.cached == [False] * 3
    assert report.runner_calls == 1


async def test_per_residue_embeddings_have_a_row_a_residue(pipeline: Pipeline, served: ServedModel) -> None:
    embeddings, _ = await run(pipeline, served, "MKT", "MKTAY", options=Options(pooled=False, dtype="float32"))
    assert embeddings[0].shape == (3, MINI.dim)
    assert embeddings[1][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert embeddings[1].dtype == np.float32


async def test_a_second_pass_is_all_hits_and_needs_no_runner(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    for options in (Options(), PER_RESIDUE):
        first, _ = await run(pipeline, served, "MKTAY", "MKT", options=options)
        calls = len(runner.calls)
        second, report = await run(pipeline, served, "MKT", "MKTAY", options=options)
        assert report.cached == [True, True]
        assert len(runner.calls) == calls
        np.testing.assert_array_equal(first[0], second[1])


async def test_equal_sequences_are_computed_once_and_delivered_to_each(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    embeddings, report = await run(pipeline, served, "MKTAY", "MKT", "MKTAY", "MKTAY")
    assert runner.calls == [["MKTAY", "MKT"]]
    assert [embeddings[i][0] for i in range(4)] == [5, 3, 5, 5]
    assert report.cached == [False] * 4


async def test_letters_that_a_model_reads_alike_are_one_sequence(
    pipeline: Pipeline, served_t5: ServedModel
) -> None:
    await run(pipeline, served_t5, "MKUAY", "MKXAY")
    runner = served_t5.runner
    assert isinstance(runner, CountingRunner)
    assert runner.calls == [["MKXAY"]]


async def test_options_do_not_share_cache_entries(pipeline: Pipeline, served: ServedModel) -> None:
    await run(pipeline, served, "MKTAY")
    for options in (Options(dtype="float32"), PER_RESIDUE):
        _, report = await run(pipeline, served, "MKTAY", options=options)
        assert report.cached == [False]


async def test_a_failed_sequence_fails_alone_and_is_not_cached(pipeline: Pipeline, served: ServedModel) -> None:
    for _ in range(2):
        embeddings, report = await run(pipeline, served, "MKTAY", "MWT", "MKT", "MWT")
        assert report.errors == {1: "has a W", 3: "has a W"}
        assert sorted(embeddings) == [0, 2]
    assert report.cached == [True, False, True, False]


async def test_a_request_in_which_everything_fails_is_an_error(pipeline: Pipeline, served: ServedModel) -> None:
    with pytest.raises(InferenceFailed, match="has a W"):
        await run(pipeline, served, "MW", "W")


async def test_large_requests_go_in_windows_a_few_at_a_time(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    sequences = ["M" * (4000 + i) for i in range(20)]
    embeddings, report = await run(pipeline, served, *sequences)
    assert [embeddings[i][0] for i in range(20)] == [np.float16(4000 + i) for i in range(20)]
    assert report.runner_calls == len(runner.calls) == 20  # 4,000 residues of this width cost over 16,384
    assert runner.most_running == pipeline_module.WINDOWS_IN_FLIGHT


async def test_what_was_computed_before_a_failure_is_kept(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    await served.describe()
    runner.gate.clear()
    request = asyncio.create_task(run(pipeline, served, *["M" * (4000 + i) for i in range(6)]))
    while runner.num_running < pipeline_module.WINDOWS_IN_FLIGHT:
        await asyncio.sleep(0)
    runner.is_down = True  # for the windows behind those two
    runner.gate.set()
    with pytest.raises(RunnerUnavailable):
        await request
    runner.is_down = False
    _, report = await run(pipeline, served, "M" * 4000)
    assert report.cached == [True]


async def test_look_ups_and_writes_are_cut_by_bytes(
    pipeline: Pipeline, served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "WINDOW_BYTES", 10 * MINI.dim * 2)  # ten rows of float16
    sequences = ["MKT" * n for n in range(1, 9)]
    for is_cached in (False, True):
        embeddings, report = await run(pipeline, served, *sequences, options=PER_RESIDUE)
        assert [len(embeddings[i]) for i in range(8)] == [len(sequence) for sequence in sequences]
        assert report.cached == [is_cached] * 8


async def test_without_redis_embeddings_are_computed_all_the_same(
    dead_client: redis.asyncio.Redis, served: ServedModel
) -> None:
    cache = Cache(dead_client, 60, 6)
    for _ in range(2):
        embeddings, report = await run(Pipeline(cache, timeout_s=60), served, "MKTAY")
        assert embeddings[0][0] == 5
        assert report.cached == [False]
    assert cache.num_errors > 0


async def test_a_value_of_the_wrong_shape_is_a_miss(
    pipeline: Pipeline, served: ServedModel, cache: Cache, client: redis.asyncio.Redis
) -> None:
    await run(pipeline, served, "MKTAY")
    (key,) = await client.keys("pes:cache:*")
    assert isinstance(key, bytes)
    await cache.put_many({key.decode(): np.zeros(3, np.float16)})
    embeddings, report = await run(pipeline, served, "MKTAY")
    assert report.cached == [False]
    assert embeddings[0].shape == (MINI.dim,)


async def test_counts_reach_redis(pipeline: Pipeline, served: ServedModel, cache: Cache) -> None:
    await run(pipeline, served, "MKTAY", "MKT")
    await run(pipeline, served, "MKTAY", "MKV")
    found = await cache.statistics()
    assert (found["cache_hits"], found["cache_misses"]) == (1, 3)


async def test_a_request_has_a_deadline_and_the_next_one_is_answered(
    cache: Cache, served: ServedModel, runner: CountingRunner
) -> None:
    await served.describe()
    runner.gate.clear()
    with pytest.raises(DeadlineExceeded, match=r"over 0\.1 seconds"):
        await run(Pipeline(cache, timeout_s=0.1), served, "MKTAY")
    runner.gate.set()
    embeddings, _ = await run(Pipeline(cache, timeout_s=60), served, "MKTAY")
    assert embeddings[0][0] == 5


async def test_a_request_that_is_given_up_leaves_its_sink_alone(cache: Cache, served: ServedModel) -> None:
    class SlowSink(MemorySink):
        is_busy = False

        def add(self, index: int, embedding: np.ndarray) -> None:
            self.is_busy = True
            self.has_begun.set()
            assert self.may_end.wait(10)
            self.is_busy = False

        def __init__(self) -> None:
            super().__init__()
            self.has_begun, self.may_end = threading.Event(), threading.Event()

    sink = SlowSink()
    request = asyncio.create_task(Pipeline(cache, timeout_s=60).embed(served, proteins("MKTAY"), Options(), sink))
    await asyncio.to_thread(sink.has_begun.wait)
    request.cancel()
    asyncio.get_running_loop().call_later(0.05, sink.may_end.set)
    with pytest.raises(asyncio.CancelledError):
        await request
    assert not sink.is_busy


async def test_a_runner_that_came_back_with_another_precision_does_not_mix_the_cache(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    await served.describe()
    runner.precision = "bf16"
    _, report = await run(pipeline, served, "MKTAY")
    assert report.precision == "bf16"
    for is_cached in (False, True):
        _, report = await run(pipeline, served, "MKTAY")
        assert report.cached == [is_cached]
