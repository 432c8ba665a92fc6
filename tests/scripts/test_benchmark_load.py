"""Pieces of the benchmarks that put a service under load: what is counted, sent and read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import islice

import pytest
from aiohttp import web

from scripts.benchmarks.clients import NO_REPLY, Answer, Call, Load, connecting
from scripts.benchmarks.latencies import percentile, summarise
from scripts.benchmarks.overload import summarise_overload
from scripts.benchmarks.services import parse_settings
from scripts.benchmarks.streams import fresh, fresh_of_length, requests
from scripts.local_service import free_port
from scripts.peers.launch import choose_peers


@pytest.mark.parametrize(
    ("percent", "expected"),
    [(0, 1), (50, 50), (50.5, 51), (99, 99), (99.1, 100), (100, 100)],
)
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(percent: float, expected: int) -> None:
    assert percentile(range(100, 0, -1), percent) == expected


def test_percentiles_of_one_value_are_that_value() -> None:
    assert summarise([0.25]).rounded() == {"num": 1, "p50_ms": 250, "p99_ms": 250}


def test_fresh_proteins_come_once_each_and_keep_length_and_residues() -> None:
    given = ["MKTAYIAKQR", "GIVEQCCTS"]
    found = list(islice(fresh(given), 15))
    assert found[:2] == given
    assert len(set(found)) == 15
    assert all(sorted(one) == sorted(given[index % 2]) for index, one in enumerate(found))


def test_fresh_proteins_end_when_every_rotation_was_there() -> None:
    assert list(fresh(["MK", "KM", "AAA"])) == ["MK", "KM", "AAA"]


def test_fresh_proteins_of_a_length_depend_on_the_seed_alone() -> None:
    first, again, other = (list(islice(fresh_of_length(30, seed), 3)) for seed in (1, 1, 2))
    assert first == again != other
    assert [len(protein) for protein in first] == [30] * 3


def test_requests_are_full_or_left_out() -> None:
    assert list(requests(iter("abcde"), 2)) == [["a", "b"], ["c", "d"]]


def test_settings_are_parsed_or_refused() -> None:
    assert parse_settings(["A=1", "B=", "C=x=y"]) == {"A": "1", "B": "", "C": "x=y"}
    for pair in ("A", "=1"):
        with pytest.raises(SystemExit, match="is not NAME=VALUE"):
            parse_settings([pair])


def test_peers_are_known_or_refused() -> None:
    assert choose_peers("") == []
    assert choose_peers("bentoml,fastapi") == ["bentoml", "fastapi"]
    with pytest.raises(SystemExit, match="--compare: triton is none of fastapi, bentoml, infinity"):
        choose_peers("fastapi,triton")


@asynccontextmanager
async def service() -> AsyncIterator[str]:
    """Answers with the status that the body asks for, once `inflight` requests are under way."""
    inflight, changed = 0, asyncio.Condition()

    async def answer(request: web.Request) -> web.Response:
        nonlocal inflight
        asked = await request.json()
        async with changed:
            inflight += 1
            changed.notify_all()
            await changed.wait_for(lambda: inflight >= asked["inflight"])
        return web.Response(status=asked["status"], text="said", headers={"Retry-After": "7"})

    app = web.Application()
    app.router.add_post("/", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}"
    await runner.cleanup()


def call(status: int = 200, inflight: int = 1, num_residues: int = 10) -> Call:
    return Call("/", json.dumps({"status": status, "inflight": inflight}).encode(), {}, num_residues)


async def test_a_closed_loop_has_its_clients_under_way_together_and_sends_each_call_once() -> None:
    async with service() as url, connecting(url) as clients:
        done = await asyncio.wait_for(clients.closed_loop([call(inflight=4)] * 4 + [call()] * 6, 4), 30)
    assert [(a.status, a.body, a.retry_after) for a in done.answers] == [(200, b"said", "7")] * 10
    assert done.num_residues == 100
    assert max(a.ended_s for a in done.answers) <= done.seconds
    assert done.own_cpu_s > 0


async def test_an_open_loop_sends_whether_answered_or_not() -> None:
    num = 43  # arrivals that seed 0 has in 50 ms at 1,000 a second
    async with service() as url, connecting(url) as clients:
        # None is answered before all are there
        load = clients.open_loop(iter([call(inflight=num)] * (num + 1)), rate=1000, seconds=0.05, seed=0)
        done = await asyncio.wait_for(load, 30)
    assert [answer.status for answer in done.answers] == [200] * num


async def test_bodies_are_kept_of_errors_alone_where_asked_for() -> None:
    async with service() as url, connecting(url, keeps_bodies=False) as clients:
        good, bad = [await clients.send(call(status)) for status in (200, 429)]
    assert (good.body, bad.body) == (b"", b"said")


async def test_a_service_that_is_not_there_is_no_reply() -> None:
    async with connecting(f"http://127.0.0.1:{free_port()}") as clients:
        answer = await clients.send(call())
    assert answer.status == NO_REPLY
    with pytest.raises(RuntimeError, match="was answered 0"):
        Load([answer]).require(200)


def test_overload_counts_what_was_answered_and_names_what_may_not_be() -> None:
    def answer(status: int, ended_s: float, retry_after: str | None = None) -> Answer:
        return Answer(call(), status, 0.5, ended_s, b"", retry_after)

    answers = [answer(200, 1), answer(200, 2), answer(200, 11), answer(429, 1, "3"), answer(500, 1), answer(0, 9)]
    found = summarise_overload(Load(answers, seconds=12, own_cpu_s=1.2), seconds=10, capacity=4)
    assert found.throughput == 2.5  # residues a second: three of ten residues in twelve seconds
    assert found.statuses == {"200": 3, "429": 1, "500": 1, "no reply": 1}
    assert found.unexpected == {"500": 1, "no reply": 1}
    assert found.retry_after == {"3": 1}
    assert found.drained_s == 2
    assert found.latencies is not None
    assert found.latencies.num == 3
