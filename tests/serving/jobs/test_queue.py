"""Jobs in a real Redis: who gets which, who may still write, what is kept and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio

from serving.errors import JobNotUnderstood, Overloaded, StoreUnavailable, UnknownJob
from serving.jobs import queue as queue_module
from serving.jobs.queue import Depth, JobQueue, Lease, LeaseLost, Quota
from serving.jobs.records import Job, Progress
from serving.jobs.schemas import JobOptions
from serving.redis import JOB_PREFIX, REDIS_ERRORS
from tests.serving.jobs.conftest import ANY, TTL_S, order

MINE = ["esm2_mini"]
HALF = Progress(next=2, offset=70, residues=20, num_cached=1, precision="fp32")
WHOLE = Progress(next=3, offset=105, residues=30, num_cached=1, precision="fp32")
Write = Callable[[JobQueue, Lease], Awaitable[None]]
# Everything that a worker writes about the job that it has
WRITES: dict[str, Write] = {
    "renew": lambda queue, lease: queue.renew(lease, live_sequences=1, reason="mine"),
    "advance": lambda queue, lease: queue.advance(lease, 0, "mine", HALF, {0: "mine"}),
    "restart": lambda queue, lease: queue.restart(lease, "esm2_mini:mine"),
    "end": lambda queue, lease: queue.end(lease, state="done", result="mine"),
    "hand back": lambda queue, lease: queue.hand_back(lease),
}


async def submit(queue: JobQueue, key: str = "", quota: Quota = ANY, **wanted: Any) -> str:
    return await queue.submit(order(**wanted), quota, key)


async def take(queue: JobQueue, token: str = "t") -> Lease:
    lease = await queue.take(MINE, token)
    assert lease is not None
    return lease


async def contents(client: redis.asyncio.Redis) -> dict[bytes, bytes | None]:
    """All that Redis holds."""
    return {key: await client.dump(key) async for key in client.scan_iter()}


async def test_a_job_is_queued_then_running_then_done(queue: JobQueue) -> None:
    wanted = order(options=JobOptions(pooled=False, dtype="float32", format="h5", max_length=300))
    assert await queue.submit(wanted, ANY, "") == wanted.id
    job = await queue.get(wanted.id)
    assert (job.order, job.state, job.progress, job.tries) == (wanted, "queued", Progress(), 0)
    assert (job.started_at, job.ended_at, job.run_at) == (None, None, None)

    lease = await take(queue)
    assert lease.job == await queue.get(wanted.id)
    assert (lease.job.state, lease.job.tries) == ("running", 1)
    assert lease.job.started_at is not None
    assert lease.job.started_at >= job.submitted_at
    assert await queue.take(MINE, "other") is None

    await queue.renew(lease, live_sequences=1, live_residues=10)
    job = await queue.get(wanted.id)
    assert (job.num_done, job.num_residues_done) == (1, 10)
    await queue.advance(lease, 0, "part-0", HALF, {1: "has a W"})
    await queue.advance(lease, 2, "part-2", WHOLE, {})
    job = await queue.get(wanted.id)
    assert (job.progress, job.num_done, job.num_residues_done) == (WHOLE, 3, 30)
    assert await queue.parts(wanted.id) == ["part-0", "part-2"]
    assert await queue.errors(wanted.id, 10) == {1: "has a W"}

    await queue.end(lease, state="done", result="embeddings.h5", result_bytes=7)
    job = await queue.get(wanted.id)
    assert (job.state, job.result, job.result_bytes, job.is_expired) == ("done", "embeddings.h5", 7, False)
    assert job.ended_at is not None
    assert job.ended_at >= lease.job.started_at
    assert await queue.parts(wanted.id) == []
    assert await queue.errors(wanted.id, 10) == {1: "has a W"}, "who looks at it later sees them"
    assert await queue.take(MINE, "other") is None


async def test_the_oldest_goes_first_across_models(queue: JobQueue) -> None:
    ids = [await submit(queue, model=model) for model in ("prot_t5", "esm2_mini", "prot_t5", "esm2_mini")]
    models = ["esm2_mini", "prot_t5"]
    taken = [await queue.take(models, f"t{number}") for number in range(4)]
    assert [lease and lease.job.id for lease in taken] == ids
    assert await queue.take(models, "t4") is None


async def test_a_worker_gets_jobs_of_its_own_models_alone(queue: JobQueue, lapsing: JobQueue) -> None:
    lapsed = await submit(queue, model="prot_t5")
    assert await lapsing.take(["prot_t5"], "vanishes")
    await submit(queue, model="prot_t5")
    assert await queue.take(MINE, "t") is None
    assert await queue.take([], "t") is None
    mine = await submit(queue)
    assert (await take(queue)).job.id == mine
    found = await queue.take(["prot_t5"], "t5")
    assert found is not None
    assert found.job.id == lapsed


async def test_each_job_goes_to_one_of_many_workers(queue: JobQueue) -> None:
    ids = [await submit(queue) for _ in range(8)]
    leases = await asyncio.gather(*(queue.take(MINE, f"t{number}") for number in range(12)))
    assert sorted(lease.job.id for lease in leases if lease) == sorted(ids)
    assert len({lease.token for lease in leases if lease}) == 8


async def test_a_job_whose_worker_has_vanished_goes_before_what_waits(queue: JobQueue, lapsing: JobQueue) -> None:
    waiting = await submit(queue)
    vanishing = await submit(queue, model="prot_t5")
    assert await lapsing.take(["prot_t5"], "vanishes")
    lease = await queue.take(["esm2_mini", "prot_t5"], "heir")
    assert lease is not None
    assert (lease.job.id, lease.job.tries) == (vanishing, 2)
    assert (await take(queue)).job.id == waiting


async def test_a_lease_that_is_renewed_does_not_lapse(queue: JobQueue, lapsing: JobQueue) -> None:
    await submit(queue)
    lease = await take(lapsing)
    await queue.renew(lease)
    assert await queue.take(MINE, "other") is None
    await lapsing.renew(lease)
    assert (await take(queue, "other")).job.id == lease.job.id


async def test_advancing_renews_the_lease(queue: JobQueue, lapsing: JobQueue) -> None:
    await submit(queue)
    lease = await take(lapsing)
    await queue.advance(lease, 0, "part", HALF, {})
    assert await queue.take(MINE, "other") is None


@pytest.mark.parametrize("what", WRITES)
async def test_whose_job_has_gone_to_another_changes_nothing(
    queue: JobQueue, lapsing: JobQueue, client: redis.asyncio.Redis, what: str
) -> None:
    await submit(queue)
    old = await take(lapsing, "old")
    heir = await take(queue, "heir")
    await queue.advance(heir, 0, "part", Progress(next=1), {})
    before = await contents(client)
    with pytest.raises(LeaseLost):
        await WRITES[what](queue, old)
    assert await contents(client) == before
    await queue.end(heir, state="done", result="r")  # it alone may still write
    assert (await queue.get(heir.job.id)).result == "r"


@pytest.mark.parametrize("what", WRITES)
async def test_whose_job_was_cancelled_or_is_over_changes_nothing(
    queue: JobQueue, client: redis.asyncio.Redis, what: str
) -> None:
    for ends_by_itself in (False, True):
        await submit(queue)
        lease = await take(queue)
        if ends_by_itself:
            await queue.end(lease, state="failed", reason="broken")
        else:
            assert await queue.cancel(lease.job)
        before = await contents(client)
        with pytest.raises(LeaseLost):
            await WRITES[what](queue, lease)
        assert await contents(client) == before


async def test_an_advance_that_is_sent_twice_counts_once(queue: JobQueue) -> None:
    """As the client does where the connection was lost before the answer."""
    await submit(queue)
    lease = await take(queue)
    for _ in range(2):
        await queue.advance(lease, 0, "part-0", HALF, {1: "has a W"})
    await queue.renew(lease, live_sequences=1)
    await queue.advance(lease, 0, "part-0", HALF, {1: "has a W"})
    job = await queue.get(lease.job.id)
    assert (job.progress, job.live_sequences) == (HALF, 1)
    assert await queue.parts(job.id) == ["part-0"]
    assert await queue.errors(job.id, 10) == {1: "has a W"}


@pytest.mark.parametrize("place", [0, 3, 7])
async def test_an_advance_from_elsewhere_is_refused(
    queue: JobQueue, client: redis.asyncio.Redis, place: int
) -> None:
    """Redis has lost what was noted, say; the parts would have a gap."""
    await submit(queue)
    lease = await take(queue)
    await queue.advance(lease, 0, "part-0", HALF, {})
    before = await contents(client)
    with pytest.raises(LeaseLost):
        await queue.advance(lease, place, "part", Progress(next=place + 4), {0: "mine"})
    assert await contents(client) == before


@pytest.mark.parametrize("key", ["", "key"])
async def test_a_submission_that_is_sent_twice_counts_once(queue: JobQueue, key: str) -> None:
    wanted = order()
    assert [await queue.submit(wanted, Quota(1, 10), key) for _ in range(2)] == [wanted.id] * 2
    await take(queue)
    assert await queue.submit(wanted, Quota(1, 10), key) == wanted.id
    assert (await queue.get(wanted.id)).state == "running"
    assert (await queue.list("me", 0, 10))[0] == 1


async def test_workers_that_vanish_without_progress_are_counted(queue: JobQueue, lapsing: JobQueue) -> None:
    await submit(queue)
    tries = [(await take(lapsing, f"t{number}")).job.tries for number in range(3)]
    assert tries == [1, 2, 3]
    lease = await take(lapsing, "t3")
    await lapsing.advance(lease, 0, "part", HALF, {})
    assert (await queue.get(lease.job.id)).tries == 0
    assert (await take(queue, "t4")).job.tries == 1


async def test_a_job_that_is_handed_back_waits_at_its_old_place(
    queue: JobQueue, client: redis.asyncio.Redis
) -> None:
    first, second = [await submit(queue) for _ in range(2)]
    place = await client.zscore("pes:jobs:queued:esm2_mini", first)
    lease = await take(queue)
    await queue.advance(lease, 0, "part-0", HALF, {})
    await queue.renew(lease, live_sequences=1, live_residues=10, reason="waiting: down")
    await queue.hand_back(lease)
    job = await queue.get(first)
    assert (job.state, job.progress, job.num_done, job.num_residues_done) == ("queued", HALF, 2, 20)
    assert job.reason == "", "nobody waits for anything any more"
    assert await client.zscore("pes:jobs:queued:esm2_mini", first) == place, "to the microsecond"
    taken = [await take(queue, token) for token in ("other", "third")]
    assert [lease.job.id for lease in taken] == [first, second]
    assert (taken[0].job.progress, taken[0].job.started_at) == (HALF, lease.job.started_at)
    assert await queue.parts(first) == ["part-0"]


@pytest.mark.parametrize("has_advanced", [False, True])
async def test_handing_back_is_not_vanishing(queue: JobQueue, has_advanced: bool) -> None:
    await submit(queue)
    for _ in range(3):
        lease = await take(queue)
        assert lease.job.tries == 1
        if has_advanced:
            place = lease.job.progress.next
            await queue.advance(lease, place, "part", Progress(next=place + 1), {})
        await queue.hand_back(lease)
        assert (await queue.get(lease.job.id)).tries == 0


async def test_a_job_that_begins_anew_keeps_nothing_of_before(queue: JobQueue) -> None:
    await submit(queue)
    lease = await take(queue)
    await queue.advance(lease, 0, "part-0", HALF, {1: "has a W"})
    await queue.hand_back(lease)
    lease = await take(queue)
    await queue.restart(lease, "esm2_mini:v2")
    job = await queue.get(lease.job.id)
    assert (job.order.tag, job.progress, job.state) == ("esm2_mini:v2", Progress(), "running")
    assert await queue.parts(job.id) == []
    assert await queue.errors(job.id, 10) == {}
    await queue.advance(lease, 0, "part-0", HALF, {})
    job = await queue.get(lease.job.id)
    assert job.residues_per_s(now=(job.run_at or 0) + 2) == 10, "20 residues in 2 s, all of them computed anew"


async def test_a_cancelled_job_is_nobodys(queue: JobQueue, lapsing: JobQueue) -> None:
    queued, running, lapsed = [await submit(queue) for _ in range(3)]
    for number in range(2):
        await take(queue, f"t{number}")
    await lapsing.take(MINE, "vanishes")
    await queue.hand_back(Lease(await queue.get(queued), "t0"))
    for job_id in (queued, running, lapsed):
        assert await queue.cancel(await queue.get(job_id))
        job = await queue.get(job_id)
        assert (job.state, job.is_expired) == ("cancelled", False)
        assert job.ended_at is not None
    assert await queue.take(MINE, "t") is None
    assert await queue.depth("esm2_mini") == Depth(0, 0.0, 0)


async def test_what_a_job_waited_for_is_not_why_it_was_cancelled(queue: JobQueue) -> None:
    await submit(queue)
    lease = await take(queue)
    await queue.advance(lease, 0, "part", Progress(), {})
    await queue.renew(lease, live_sequences=2, live_residues=20, reason="waiting: down")
    assert await queue.cancel(lease.job)
    assert await queue.parts(lease.job.id) == []
    job = await queue.get(lease.job.id)
    assert (job.reason, job.num_done, job.num_residues_done) == ("", 0, 0)


@pytest.mark.parametrize("state", ["done", "failed", "cancelled"])
async def test_a_job_that_is_over_is_not_cancelled(
    queue: JobQueue, client: redis.asyncio.Redis, state: str
) -> None:
    await submit(queue)
    lease = await take(queue)
    if state == "cancelled":
        await queue.cancel(lease.job)
    else:
        await queue.end(lease, state=state)
    before = await contents(client)
    assert not await queue.cancel(lease.job)
    assert await contents(client) == before


async def test_the_same_idempotency_key_gives_the_same_job(queue: JobQueue) -> None:
    first = await submit(queue, key="k")
    assert await submit(queue, key="k") == first
    assert await queue.find_key("me", "k") == first
    assert (await queue.list("me", 0, 10))[0] == 1
    others = {await submit(queue, key="l"), await submit(queue, key="k", owner="you"), await submit(queue)}
    assert len(others | {first}) == 4
    assert await queue.find_key("me", "") is None
    await queue.end(await take(queue), state="done")
    assert await submit(queue, key="k") == first, "whatever has become of it"


async def test_a_known_key_is_answered_though_the_quota_is_reached(queue: JobQueue) -> None:
    first = await submit(queue, key="k", quota=Quota(1, 3))
    assert await submit(queue, key="k", quota=Quota(1, 3)) == first
    with pytest.raises(Overloaded):
        await submit(queue, key="l", quota=Quota(1, 3))
    assert await queue.find_key("me", "l") is None


async def test_an_owner_has_so_many_jobs_at_most(queue: JobQueue, client: redis.asyncio.Redis) -> None:
    quota = Quota(max_jobs=2, max_sequences=1000)
    await submit(queue, quota=quota)
    await take(queue)  # a running one counts too
    await submit(queue, quota=quota)
    before = await contents(client)
    with pytest.raises(Overloaded, match="2 jobs of yours are queued or running; try again in 30 s"):
        await submit(queue, quota=quota)
    assert await contents(client) == before, "nothing is left of what was refused"
    assert await submit(queue, quota=quota, owner="you")


async def test_an_owner_has_so_many_sequences_at_most(queue: JobQueue) -> None:
    quota = Quota(max_jobs=10, max_sequences=10)
    await submit(queue, quota=quota, num_sequences=4)
    await submit(queue, quota=quota, num_sequences=6)
    with pytest.raises(Overloaded, match=r"11 sequences of yours .* the most is 10"):
        await submit(queue, quota=quota, num_sequences=1)
    assert await submit(queue, quota=quota, num_sequences=1, owner="you")


async def test_one_job_is_always_taken(queue: JobQueue) -> None:
    quota = Quota(max_jobs=10, max_sequences=10)
    await submit(queue, quota=quota, num_sequences=5000)
    with pytest.raises(Overloaded):
        await submit(queue, quota=quota, num_sequences=1)


@pytest.mark.parametrize("state", ["done", "failed", "cancelled"])
async def test_jobs_that_are_over_count_no_more(queue: JobQueue, state: str) -> None:
    quota = Quota(max_jobs=1, max_sequences=3)
    for _ in range(3):
        job_id = await submit(queue, quota=quota)
        if state == "cancelled":
            await queue.cancel(await queue.get(job_id))
        else:
            await queue.end(await take(queue), state=state)


async def test_a_job_that_was_handed_back_counts(queue: JobQueue) -> None:
    await submit(queue)
    await queue.hand_back(await take(queue))
    with pytest.raises(Overloaded):
        await submit(queue, quota=Quota(1, 1000))


async def test_jobs_are_listed_in_pages_the_latest_first_and_by_owner(queue: JobQueue) -> None:
    ids = [await submit(queue) for _ in range(5)]
    yours = await submit(queue, owner="you")
    pages = [await queue.list("me", start, 2) for start in (0, 2, 4, 6)]
    assert [total for total, _ in pages] == [5] * 4
    assert [[job.id for job in jobs] for _, jobs in pages] == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]], []]
    assert [job.id for job in (await queue.list("you", 0, 10))[1]] == [yours]
    assert await queue.list("nobody", 0, 10) == (0, [])


async def test_no_key_of_a_job_expires(
    queue: JobQueue, lapsing: JobQueue, client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis evicts what expires where memory is short."""
    seen: set[bytes] = set()

    async def check() -> None:
        async for key in client.scan_iter("pes:job*"):
            seen.add(key)
            assert await client.ttl(key) == -1, key
        assert len([key async for key in client.scan_iter()]) == len(
            [key async for key in client.scan_iter("pes:job*")]
        )

    await submit(queue, key="k")
    await check()
    await queue.hand_back(await take(queue))
    await take(lapsing, "vanishes")
    lease = await take(queue, "heir")
    await check()
    await queue.renew(lease, live_sequences=1)
    await queue.advance(lease, 0, "part", HALF, {1: "has a W"})
    await check()
    await queue.end(lease, state="done", result="r")
    await queue.cancel(await queue.get(await submit(queue)))
    await check()
    await queue.forget(lease.job.id)
    await check()
    kinds = {key.rpartition(b"_")[2][32:] if key.startswith(b"pes:job:") else key for key in seen}
    assert kinds == {b"", b":parts", b":errors"} | {
        b"pes:jobs:" + name
        for name in (b"queued:esm2_mini", b"leased:esm2_mini", b"ended", b"active:me", b"mine:me", b"keys:me")
    }, "all kinds of keys were looked at"


@pytest.mark.parametrize("windows", [[3, 4], [7], [0, 7], [5, 1], [1, 9]])
async def test_so_many_errors_are_kept_and_the_first_ones_are_told(
    queue: JobQueue, monkeypatch: pytest.MonkeyPatch, windows: list[int]
) -> None:
    """windows: errors in each of the windows of a job."""
    monkeypatch.setattr(queue_module, "MAX_LISTED_ERRORS", 5)
    await submit(queue, num_sequences=20)
    lease = await take(queue)
    place = num_failed = 0
    for number in windows:
        num_failed += number
        errors = {place + i: f"error {place + i}" for i in reversed(range(number))}
        await queue.advance(lease, place, "part", Progress(next=place + 10, num_failed=num_failed), errors)
        place += 10
    indices = [10 * window + i for window, number in enumerate(windows) for i in range(number)]
    expected = {index: f"error {index}" for index in indices}
    assert await queue.errors(lease.job.id, 100) == dict(list(expected.items())[:5])
    assert list((await queue.errors(lease.job.id, 2)).items()) == list(expected.items())[:2]


async def test_an_error_may_hold_any_text(queue: JobQueue) -> None:
    await submit(queue)
    lease = await take(queue)
    errors = {0: 'ünï "quoted" \\ \n蛋白', 1: "", 2: "9" * 5000}
    await queue.advance(lease, 0, "part", Progress(next=3, num_failed=3), errors)
    assert await queue.errors(lease.job.id, 10) == errors


async def test_depth_tells_what_waits_and_what_is_worked_on(queue: JobQueue, client: redis.asyncio.Redis) -> None:
    assert await queue.depth("esm2_mini") == Depth(0, 0.0, 0)
    ids = [await submit(queue) for _ in range(3)]
    await submit(queue, model="prot_t5")
    await take(queue)
    await client.zincrby("pes:jobs:queued:esm2_mini", -100, ids[1])  # it has waited for long
    depth = await queue.depth("esm2_mini")
    assert (depth.num_queued, depth.num_running) == (2, 1)
    assert 100 <= depth.oldest_s < 100 + TTL_S
    assert (await queue.depth("prot_t5")).num_queued == 1


async def test_a_result_expires_and_a_while_later_the_job_is_forgotten(
    client: redis.asyncio.Redis, queue: JobQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = JobQueue(client, lease_s=60, ttl_s=0)
    assert await short.expired() == []
    done = await submit(short, key="k")
    lease = await take(short)
    await short.advance(lease, 0, "part", HALF, {1: "has a W"})
    await short.end(lease, state="done", result="r")
    cancelled = await submit(short)
    await short.cancel(await short.get(cancelled))
    assert set(await short.expired()) == {done, cancelled}
    await submit(queue)
    await queue.end(await take(queue), state="done")
    assert set(await short.expired()) == {done, cancelled}, "another's time is not over"

    await short.forget(done)
    assert await short.expired() == [cancelled]
    job = await short.get(done)
    assert (job.state, job.is_expired) == ("done", True)
    assert await short.errors(done, 10) == {1: "has a W"}
    assert await submit(short, key="k") == done

    monkeypatch.setattr(queue_module, "REMEMBERED_S", 0)
    await short.forget(cancelled)
    assert await short.expired() == [cancelled]
    await short.forget(cancelled)
    assert await short.expired() == []
    with pytest.raises(UnknownJob):
        await short.get(cancelled)


async def test_nothing_of_a_forgotten_job_is_left(
    client: redis.asyncio.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_module, "REMEMBERED_S", 0)
    queue = JobQueue(client, lease_s=60, ttl_s=0)
    first = await submit(queue, key="k")
    lease = await take(queue)
    await queue.advance(lease, 0, "part", HALF, {1: "has a W"})
    await queue.end(lease, state="failed", reason="broken")
    for _ in range(2):
        await queue.forget(first)
    assert await contents(client) == {}
    second = await submit(queue, key="k")
    assert second != first, "its key is free again"
    assert await queue.find_key("me", "k") == second


async def test_two_who_sweep_at_the_same_time_forget_a_job_no_sooner(client: redis.asyncio.Redis) -> None:
    """Each gateway worker sweeps, and all of them began together."""
    queue = JobQueue(client, lease_s=60, ttl_s=0)
    job_id = await submit(queue)
    await queue.end(await take(queue), state="done", result="r")
    assert await queue.expired() == [job_id]  # so both see it
    await asyncio.gather(queue.forget(job_id), queue.forget(job_id))
    assert (await queue.get(job_id)).is_expired


async def test_who_has_files_is_known(queue: JobQueue) -> None:
    there = await submit(queue)
    assert await queue.known([there, order().id]) == {there}
    assert await queue.known([]) == set()


async def test_the_outcome_of_a_job_is_its_state_and_its_result(queue: JobQueue) -> None:
    assert await queue.outcome(order().id) == ("", "")
    job_id = await submit(queue)
    assert await queue.outcome(job_id) == ("queued", "")
    lease = await take(queue)
    assert await queue.outcome(job_id) == ("running", "")
    await queue.end(lease, state="done", result="r")
    assert await queue.outcome(job_id) == ("done", "r")
    cancelled = await submit(queue)
    await queue.cancel(await queue.get(cancelled))
    assert await queue.outcome(cancelled) == ("cancelled", "")


@pytest.mark.parametrize("form", ["", "nobody", "{}x", "x{}", "{}:errors", "{}:parts", "*", "a" * 5000, "{}\n"])
async def test_what_is_no_id_of_a_job_is_unknown(queue: JobQueue, form: str) -> None:
    job_id = await submit(queue)
    await queue.advance(await take(queue), 0, "part", HALF, {1: "has a W"})
    with pytest.raises(UnknownJob):
        await queue.get(form.format(job_id))


async def test_a_job_of_another_version_is_told_apart_and_the_others_are_listed(
    queue: JobQueue, client: redis.asyncio.Redis
) -> None:
    job_ids = [await submit(queue) for _ in range(3)]
    await client.hdel(JOB_PREFIX + job_ids[1], "tag")
    with pytest.raises(JobNotUnderstood, match="another version"):
        await queue.get(job_ids[1], "me")
    with pytest.raises(UnknownJob):
        await queue.get(job_ids[1], "somebody else")
    total, jobs = await queue.list("me", 0, 10)
    assert (total, {job.id for job in jobs}) == (3, {job_ids[0], job_ids[2]})


async def test_a_job_that_was_forgotten_meanwhile_is_not_listed_or_taken(
    queue: JobQueue, client: redis.asyncio.Redis
) -> None:
    gone, there = [await submit(queue) for _ in range(2)]
    await client.delete(f"pes:job:{gone}")
    total, jobs = await queue.list("me", 0, 10)
    assert (total, [job.id for job in jobs]) == (2, [there])


Ask = Callable[[JobQueue, Job], Awaitable[Any]]


def as_holder(write: Write) -> Ask:
    return lambda queue, job: write(queue, Lease(job, "t"))


ASKED_BY_ROUTES: dict[str, Ask] = {
    "submit": lambda queue, job: queue.submit(job.order, ANY, "k"),
    "check": lambda queue, job: queue.check(),
    "find_key": lambda queue, job: queue.find_key("me", "k"),
    "get": lambda queue, job: queue.get(job.id),
    "errors": lambda queue, job: queue.errors(job.id, 10),
    "list": lambda queue, job: queue.list("me", 0, 10),
    "cancel": lambda queue, job: queue.cancel(job),
}
ASKED_BY_WORKERS: dict[str, Ask] = {
    "take": lambda queue, job: queue.take(MINE, "t"),
    "outcome": lambda queue, job: queue.outcome(job.id),
    "parts": lambda queue, job: queue.parts(job.id),
    "depth": lambda queue, job: queue.depth("esm2_mini"),
    "expired": lambda queue, job: queue.expired(),
    "forget": lambda queue, job: queue.forget(job.id),
    "known": lambda queue, job: queue.known([job.id]),
    **{name: as_holder(write) for name, write in WRITES.items()},
}


@pytest.mark.parametrize("what", [*ASKED_BY_ROUTES, *ASKED_BY_WORKERS])
async def test_a_redis_that_is_away_is_told(dead_client: redis.asyncio.Redis, what: str) -> None:
    """People are told in words, workers by the error that they wait and ask again at."""
    queue = JobQueue(dead_client, 60, 60)
    wanted = order()
    record = {"state": "queued", "submitted_at": "0", **wanted.to_fields()}
    job = Job.from_hash(wanted.id, {name.encode(): str(value).encode() for name, value in record.items()})
    if what in ASKED_BY_ROUTES:
        with pytest.raises(StoreUnavailable, match="Redis does not answer"):
            await ASKED_BY_ROUTES[what](queue, job)
    else:
        with pytest.raises(REDIS_ERRORS):
            await ASKED_BY_WORKERS[what](queue, job)


@pytest.mark.parametrize("is_lapsed", [False, True])
async def test_a_job_of_which_nothing_but_its_name_is_left_is_given_to_nobody(
    queue: JobQueue, lapsing: JobQueue, client: redis.asyncio.Redis, is_lapsed: bool
) -> None:
    lost, whole = await submit(queue), await submit(queue)
    if is_lapsed:
        assert (await take(lapsing)).job.id == lost
    await client.delete(JOB_PREFIX + lost)
    assert await queue.take(MINE, "t") is None
    assert not await client.exists(JOB_PREFIX + lost)
    assert (await take(queue)).job.id == whole
    assert await queue.take(MINE, "t") is None


@pytest.mark.parametrize(("field", "value"), [("options", '{"nobody": "knows this"}'), ("tag", None)])
async def test_a_job_that_is_not_understood_is_left_as_it_was_for_another_version(
    queue: JobQueue, lapsing: JobQueue, client: redis.asyncio.Redis, field: str, value: str | None
) -> None:
    job_id = await submit(queue)
    name = JOB_PREFIX + job_id
    before = await client.hget(name, field)
    await (client.hdel(name, field) if value is None else client.hset(name, field, value))
    for number in range(3):
        with pytest.raises(JobNotUnderstood) as raised:
            await lapsing.take(MINE, f"old {number}")
        assert ("nobody" if value else f"job {job_id} has no tag") in str(raised.value.__cause__)
    await client.hset(name, field, before)
    lease = await take(queue)
    assert (lease.job.id, lease.job.tries) == (job_id, 1)
