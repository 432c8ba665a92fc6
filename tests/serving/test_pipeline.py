"""The path of a request, with a runner that counts residues and a real Redis."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import redis.asyncio

from models.catalogue import MINI
from models.wire import Reply
from serving import parts as parts_module
from serving import pipeline as pipeline_module
from serving.cache import Cache
from serving.errors import DeadlineExceeded, InferenceFailed, Overloaded, RunnerUnavailable
from serving.parts import Options
from serving.pipeline import MemorySink, Pipeline, Report
from serving.runners import ServedModel, Terms
from tests.serving.conftest import CountingRunner, proteins, within

PER_RESIDUE = Options(pooled=False)


async def run(
    pipeline: Pipeline,
    served: ServedModel,
    *sequences: str,
    options: Options = Options(),
    terms: Terms | None = None,
) -> tuple[dict[int, np.ndarray], Report]:
    sink = MemorySink()
    report = await pipeline.embed(served, proteins(*sequences), options, sink, terms or within())
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


async def test_large_requests_go_in_calls_a_few_at_a_time(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    sequences = ["M" * (4000 + i) for i in range(20)]
    embeddings, report = await run(pipeline, served, *sequences)
    assert [embeddings[i][0] for i in range(20)] == [np.float16(4000 + i) for i in range(20)]
    assert report.runner_calls == len(runner.calls) == 20  # 4,000 residues of this width cost over 16,384
    assert runner.most_running == pipeline_module.CALLS_IN_FLIGHT


async def test_what_was_computed_before_a_failure_is_kept(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    await served.describe()
    runner.gate.clear()
    request = asyncio.create_task(run(pipeline, served, *["M" * (4000 + i) for i in range(6)]))
    while not runner.num_running:
        await asyncio.sleep(0)
    runner.is_down = True  # for the calls behind those two
    runner.gate.set()
    with pytest.raises(RunnerUnavailable):
        await request
    runner.is_down = False
    _, report = await run(pipeline, served, "M" * 4000)
    assert report.cached == [True]


class WatchedCache(Cache):
    """Notes how many embeddings each look-up asks for and each write holds."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        super().__init__(client, ttl_s=60, level=6)
        self.lookups: list[int] = []
        self.writes: list[int] = []

    async def get_many(self, keys: Sequence[str]) -> list[np.ndarray | None]:
        self.lookups.append(len(keys))
        return await super().get_many(keys)

    async def put_many(self, embeddings: Mapping[str, np.ndarray]) -> None:
        if embeddings:
            self.writes.append(len(embeddings))
        await super().put_many(embeddings)


async def test_look_ups_calls_and_writes_are_cut_by_bytes(
    client: redis.asyncio.Redis, served: ServedModel, runner: CountingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    ten_rows = 10 * MINI.dim * 2  # of float16
    monkeypatch.setattr(pipeline_module, "LOOKUP_BYTES", ten_rows)
    monkeypatch.setattr(pipeline_module, "WRITE_BYTES", ten_rows)
    monkeypatch.setattr(parts_module, "CALL_BYTES", ten_rows)
    monkeypatch.setattr(pipeline_module, "CALLS_IN_FLIGHT", 1)
    cache = WatchedCache(client)
    sequences = ["MKT" * n for n in range(1, 6)]  # 3, 6, 9, 12 and 15 residues
    for is_cached in (False, True):
        embeddings, report = await run(Pipeline(cache), served, *sequences, options=PER_RESIDUE)
        assert [len(embeddings[i]) for i in range(5)] == [len(sequence) for sequence in sequences]
        assert report.cached == [is_cached] * 5
    assert cache.lookups == [2, 1, 1, 1] * 2
    assert [len(call) for call in runner.calls] == [2, 1, 1, 1]
    assert cache.writes == [3, 1, 1], "the first call's nine rows wait for the next call's"


async def test_usually_one_look_up_one_call_and_one_write_are_enough(
    client: redis.asyncio.Redis, served: ServedModel, runner: CountingRunner
) -> None:
    cache = WatchedCache(client)
    await run(Pipeline(cache), served, *["MKT" * n for n in range(1, 9)], options=PER_RESIDUE)
    assert (cache.lookups, len(runner.calls), cache.writes) == ([8], 1, [8])


async def test_what_is_larger_than_redis_takes_is_not_cached(
    pipeline: Pipeline, served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline_module, "MAX_CACHED_BYTES", 5 * MINI.dim * 2)
    for are_cached in ([False, False], [True, False]):
        embeddings, report = await run(pipeline, served, "MKTAY", "MKTAYM", options=PER_RESIDUE)
        assert [len(embeddings[0]), len(embeddings[1])] == [5, 6]
        assert report.cached == are_cached


async def test_without_redis_embeddings_are_computed_all_the_same(
    dead_client: redis.asyncio.Redis, served: ServedModel
) -> None:
    cache = Cache(dead_client, 60, 6)
    for _ in range(2):
        embeddings, report = await run(Pipeline(cache), served, "MKTAY")
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
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    await served.describe()
    runner.gate.clear()
    with pytest.raises(DeadlineExceeded, match=r"the request took over 0\.\d+ seconds"):
        await run(pipeline, served, "MKTAY", terms=within(0.1))
    runner.gate.set()
    embeddings, _ = await run(pipeline, served, "MKTAY")
    assert embeddings[0][0] == 5


async def test_an_answer_that_is_there_is_not_late_for_a_redis_that_is(
    pipeline: Pipeline, served: ServedModel, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_many = cache.put_many

    async def take_a_while(embeddings: Mapping[str, np.ndarray]) -> None:
        await asyncio.sleep(1)
        await put_many(embeddings)

    await served.describe()
    monkeypatch.setattr(cache, "put_many", take_a_while)
    embeddings, _ = await run(pipeline, served, "MKTAY", terms=within(0.5))
    assert embeddings[0][0] == 5
    _, report = await run(pipeline, served, "MKTAY")
    assert report.cached == [True]


async def test_a_request_that_is_given_up_leaves_its_sink_alone(pipeline: Pipeline, served: ServedModel) -> None:
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
    long = proteins("M" * 1000)  # so that it is worth a thread
    request = asyncio.create_task(pipeline.embed(served, long, PER_RESIDUE, sink, within()))
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


@pytest.mark.parametrize("is_described", [True, False])
async def test_a_request_whose_time_is_over_reaches_no_runner(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner, is_described: bool
) -> None:
    if is_described:
        await served.describe()
    with pytest.raises(DeadlineExceeded):
        await run(pipeline, served, "MKTAY", terms=within(-1))
    assert runner.calls == []


async def test_a_request_that_is_cancelled_ends_whenever_that_comes(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    await served.describe()
    runner.gate.clear()
    deaf: list[int] = []
    for num_steps in range(20):
        request = asyncio.create_task(run(pipeline, served, "MKTAY"))
        for _ in range(num_steps):
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait({request}, timeout=0.5)
        if not request.done():
            deaf.append(num_steps)
            request.cancel()
            await asyncio.wait({request})
    assert deaf == []


async def test_calls_have_the_requests_terms_and_only_the_first_can_be_refused(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    terms = Terms(within().deadline, priority="bulk")
    await run(pipeline, served, *["M" * (4000 + i) for i in range(5)], terms=terms)
    assert [found.is_admitted for found in runner.terms] == [False, True, True, True, True]
    assert {(found.deadline, found.priority) for found in runner.terms} == {(terms.deadline, "bulk")}


@pytest.mark.parametrize("num_sequences", [1, 5])
async def test_a_full_queue_refuses_the_request_and_nothing_goes_on_behind_it(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner, num_sequences: int
) -> None:
    runner.is_full = True
    with pytest.raises(Overloaded, match="full; try again in 7 s") as error:
        await run(pipeline, served, *["M" * (4000 + i) for i in range(num_sequences)])
    assert error.value.retry_after_s == 7
    assert len(runner.calls) <= pipeline_module.CALLS_IN_FLIGHT
    runner.is_full = False
    _, report = await run(pipeline, served, "M" * 4000)
    assert report.cached == [False]


async def test_what_is_in_the_cache_needs_no_room_in_a_queue(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    await run(pipeline, served, "MKTAY")
    runner.is_full = True
    embeddings, report = await run(pipeline, served, "MKTAY")
    assert (embeddings[0][0], report.cached) == (5, [True])


async def test_the_device_of_what_was_computed_is_reported(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    await run(pipeline, served, "MKT")
    runner.device = "cuda:1"
    _, report = await run(pipeline, served, "MKT", "MKTAY", "MWT", "MKTAY")
    assert report.devices == {1: "cuda:1", 2: "cuda:1", 3: "cuda:1"}
    runner.device = None
    _, report = await run(pipeline, served, "MKTA", "MKT")
    assert report.devices == {}


# Windows of 4 start at residues 0, 3 and 6 of 10; each has rows 0, 1, 2, 3, and where two overlap is their mean
TEN = "MKTAYIAKQR"
JOINED = [0, 1, 2, 1.5, 1, 2, 1.5, 1, 2, 3]


async def test_a_long_sequence_is_computed_in_windows_and_joined(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    options = Options(pooled=False, dtype="float16", window=4)
    embeddings, report = await run(pipeline, served, TEN, "MKT", TEN, options=options)
    assert embeddings[0].shape == (10, MINI.dim)
    assert embeddings[0].dtype == np.float16
    assert embeddings[0][:, 0].tolist() == embeddings[2][:, 5].tolist() == JOINED
    assert embeddings[1][:, 0].tolist() == [0, 1, 2]
    assert runner.calls == [["MKT"], ["MKTA", "AYIA", "AKQR"]]
    assert runner.forms == [(False, "float16"), (False, "float32")]
    assert (report.errors, report.runner_calls) == ({}, 2)
    assert report.devices == {0: "cpu", 1: "cpu", 2: "cpu"}


async def test_pooled_over_windows_is_the_mean_over_the_sequence(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    embeddings, _ = await run(pipeline, served, TEN, "MKT", options=Options(dtype="float32", window=4))
    assert embeddings[0].shape == (MINI.dim,)
    assert embeddings[0][0] == 1.5
    assert embeddings[0].dtype == np.float32
    assert embeddings[1][0] == 3, "what is not longer than a window is pooled by the runner"
    assert runner.forms == [(True, "float32"), (False, "float32")]


async def test_windows_may_come_back_in_calls_of_their_own(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts_module, "CALL_TOKENS", 4)
    options = Options(pooled=False, window=4)
    embeddings, report = await run(pipeline, served, TEN, "MKTAYIAKQRM", options=options)
    assert report.runner_calls == 7  # the second takes four windows, from residues 0, 2, 4 and 7
    assert embeddings[0][:, 0].tolist() == JOINED
    assert embeddings[1][:, 0].tolist() == [0, 1, 1, 2, 1, 2, 2, 1.5, 1, 2, 3]
    _, report = await run(pipeline, served, TEN, "MKTAYIAKQRM", options=options)
    assert report.cached == [True, True]


@pytest.mark.parametrize("pooled", [True, False])
async def test_each_size_of_window_is_cached_under_a_key_of_its_own(
    pipeline: Pipeline, served: ServedModel, pooled: bool
) -> None:
    for window in (None, 4, 5):
        first, report = await run(pipeline, served, TEN, options=Options(pooled, window=window))
        assert report.cached == [False]
        second, report = await run(pipeline, served, TEN, options=Options(pooled, window=window))
        assert report.cached == [True]
        np.testing.assert_array_equal(first[0], second[0])


async def test_what_is_not_longer_than_a_window_is_shared_with_requests_without_windows(
    pipeline: Pipeline, served: ServedModel
) -> None:
    await run(pipeline, served, TEN, "MKT")
    for window, are_cached in ((10, [True, True]), (11, [True, True]), (9, [False, True])):
        _, report = await run(pipeline, served, TEN, "MKT", options=Options(window=window))
        assert report.cached == are_cached


@pytest.mark.parametrize("call_tokens", [4, 1000])
@pytest.mark.parametrize("bad", ["MKTAYIAKQW", "WKTAYIAKQR", "MKTWYIAKQR"])  # in one window, or two
async def test_a_window_that_fails_fails_its_sequence_alone(
    pipeline: Pipeline,
    served: ServedModel,
    monkeypatch: pytest.MonkeyPatch,
    bad: str,
    call_tokens: int,
) -> None:
    monkeypatch.setattr(parts_module, "CALL_TOKENS", call_tokens)
    options = Options(pooled=False, window=4)
    for are_cached in ([False, False, False], [True, False, False]):
        embeddings, report = await run(pipeline, served, TEN, bad, bad, options=options)
        assert report.errors == {1: "has a W", 2: "has a W"}
        assert list(embeddings) == [0]
        assert embeddings[0][:, 0].tolist() == JOINED
        assert report.cached == are_cached


async def test_a_sequence_all_of_whose_windows_fail_is_an_error(pipeline: Pipeline, served: ServedModel) -> None:
    with pytest.raises(InferenceFailed, match="has a W"):
        await run(pipeline, served, "W" * 10, options=Options(window=4))


async def test_joined_windows_that_do_not_fit_fail_their_sequence_alone(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = runner.embed

    async def enlarged(sequences: list[Any], form: Mapping[str, Any], terms: Terms) -> Reply:
        reply = await answer(sequences, form, terms)
        return replace(reply, embeddings=reply.embeddings * (1 if form["pooled"] else 100_000))

    monkeypatch.setattr(runner, "embed", enlarged)
    embeddings, report = await run(pipeline, served, TEN, "MKT", TEN, options=Options(window=4))
    assert report.errors == dict.fromkeys([0, 2], "the output does not fit float16; ask for float32")
    assert embeddings[1][0] == 3
    embeddings, report = await run(pipeline, served, TEN, options=Options(dtype="float32", window=4))
    assert (embeddings[0][0], report.cached) == (150_000, [False])


async def test_each_sequence_has_the_device_that_it_ran_on(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = runner.embed

    async def by_two_devices(sequences: list[Any], form: Mapping[str, Any], terms: Terms) -> Reply:
        reply = await answer(sequences, form, terms)
        return replace(reply, devices=["cuda:0", "cuda:1"])

    monkeypatch.setattr(runner, "embed", by_two_devices)
    _, report = await run(pipeline, served, "MKT", "MKTAY")
    assert report.devices == {0: "cuda:0", 1: "cuda:1"}


async def test_what_another_precision_computed_is_not_kept_under_the_old_ones_key(
    pipeline: Pipeline, served: ServedModel, runner: CountingRunner
) -> None:
    await served.describe()
    runner.precision = "bf16"
    await run(pipeline, served, "MKTAY")
    runner.precision = "fp32"
    served.forget()
    _, report = await run(pipeline, served, "MKTAY")
    assert report.cached == [False]


async def test_a_write_that_is_under_way_when_a_call_fails_is_made_to_its_end(
    client: redis.asyncio.Redis, served: ServedModel, runner: CountingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_end, has_ended = asyncio.Event(), asyncio.Event(), asyncio.Event()
    answer = runner.embed

    class SlowCache(Cache):
        num_writes = 0

        async def put_many(self, embeddings: Mapping[str, np.ndarray]) -> None:
            self.num_writes += 1
            if self.num_writes == 2:
                has_begun.set()
                await may_end.wait()
                await super().put_many(embeddings)
                has_ended.set()

    async def fail_meanwhile(sequences: list[Any], form: Mapping[str, Any], terms: Terms) -> Reply:
        if len(sequences[0]) == 4002:
            await has_begun.wait()
            raise RunnerUnavailable("down")
        return await answer(sequences, form, terms)

    monkeypatch.setattr(pipeline_module, "WRITE_BYTES", 1)
    monkeypatch.setattr(runner, "embed", fail_meanwhile)
    cache = SlowCache(client, ttl_s=60, level=6)
    with pytest.raises(RunnerUnavailable):
        await run(Pipeline(cache), served, "M" * 4000, "M" * 4001, "M" * 4002)
    may_end.set()
    async with asyncio.timeout(10):
        await has_ended.wait()
    _, report = await run(Pipeline(cache), served, "M" * 4001)
    assert report.cached == [True]


async def test_a_sink_is_called_from_one_thread_at_a_time(pipeline: Pipeline, served: ServedModel) -> None:
    class MeetingPlace(MemorySink):
        """Where two threads are at the same time, they meet."""

        def __init__(self) -> None:
            super().__init__()
            self.num_meetings = 0
            self.barrier = threading.Barrier(2)

        def add(self, index: int, embedding: np.ndarray) -> None:
            try:
                self.barrier.wait(0.1)
                self.num_meetings += 1
            except threading.BrokenBarrierError:
                self.barrier.reset()

    sink = MeetingPlace()
    sequences = proteins(*["M" * (4000 + i) for i in range(4)])  # a call each, two at a time
    await pipeline.embed(served, sequences, PER_RESIDUE, sink, within())
    assert sink.num_meetings == 0
