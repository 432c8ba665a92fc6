"""Jobs of the running service: beside the engine alone, small requests beside one, taking in a huge one."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import httpx

from scripts.benchmarks.clients import connecting
from scripts.benchmarks.contenders import find_task
from scripts.benchmarks.engine_process import EngineProcess
from scripts.benchmarks.fairness import time_of_batch
from scripts.benchmarks.footprint import memory_table, watching
from scripts.benchmarks.latencies import summarise
from scripts.benchmarks.machine import prepare
from scripts.benchmarks.reports import markdown, write_line
from scripts.benchmarks.services import Served, serving
from scripts.benchmarks.services import add_arguments as add_service_arguments
from scripts.benchmarks.streams import fresh, fresh_of_length
from scripts.benchmarks.workload import load

POLL_S = 0.1
START_S = 60.0  # in which a job must have begun
FASTA = {"content-type": "text/x-fasta"}
ENDED = ("done", "failed", "cancelled")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_service_arguments(parser)
    parser.add_argument("--num", type=int, default=512, help="proteins of a job (default: 512)")
    parser.add_argument("--max-length", type=int, default=1000, help="longer ones are left out (default: 1000)")
    parser.add_argument("--rounds", type=int, default=3, help="of engine and job in turn (default: 3)")
    parser.add_argument("--beside", type=int, default=100, help="small requests beside a job (default: 100)")
    parser.add_argument("--small", type=int, default=300, help="residues of a small one (default: 300)")
    parser.add_argument("--huge", type=int, default=100_000, help="proteins of the huge job (default: 100000)")


def run(options: argparse.Namespace) -> None:
    prepare()
    task = find_task(options.model)
    found = load(options.fasta, options.num, options.max_length, options.seed)
    with EngineProcess(task) as engine, serving(options) as served:
        batch_s = time_of_batch(engine, task, 1000, options.seed)
        ratios, rates = [], []
        stream = fresh(found)
        for _ in range(options.rounds):
            proteins = list(islice(stream, options.num))
            _, engine_s = engine.embed(proteins)
            job_s = _time_of_job(served, proteins)
            ratios.append(engine_s / job_s)
            rates.append(sum(map(len, proteins)) / job_s)
        beside = asyncio.run(_beside_a_job(served, stream, options))
        huge = _take_in(served, options)
    of_engine, rate = statistics.median(ratios), statistics.median(rates)
    p50, p99 = beside["p50_ms"] / 1e3 / batch_s, beside["p99_ms"] / 1e3 / batch_s
    rows = [
        [f"a job of {options.num} proteins, residues/s", f"{rate:,.0f}"],
        ["of the engine alone", f"{of_engine:.1%}"],
        [f"{options.small} residues beside a job, p50, full batches of {batch_s * 1e3:,.0f} ms", f"{p50:.2f}"],
        ["p99, full batches", f"{p99:.2f}"],
        [f"{options.huge:,} proteins ({huge['megabytes']:.1f} MB) taken in, s", f"{huge['taken_in_s']:.2f}"],
        ["cancelled while it ran, s until the device was free", f"{huge['cancelled_s']:.2f}"],
    ]
    print(f"\n{markdown([options.model, ''], rows)}\n")
    growth = huge.pop("growth")
    if growth:
        print(f"while the huge job was taken in:\n\n{memory_table(growth)}\n")
    figures = {
        "residues_per_s": round(rate, 1),
        "of_engine": round(of_engine, 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "batch_ms": round(batch_s * 1e3, 2),
        "beside": beside,
        "beside_p50_batches": round(p50, 3),
        "beside_p99_batches": round(p99, 3),
        "huge": huge,
        "gateway_growth_mb": round((growth["gateway"].peak_pss - growth["gateway"].start_pss) / 1e6, 1)
        if growth
        else None,
        "num": options.num,
        "settings": options.set,
    }
    write_line(figures, task, options.json)


def submit(url: str, model: str, proteins: Iterator[str] | Sequence[str], **options: str) -> str:
    """The id of a job of FASTA text; it is made while it is sent."""

    def text() -> Iterator[bytes]:
        for index, protein in enumerate(proteins):
            yield f">p{index}\n{protein}\n".encode()

    reply = httpx.post(
        f"{url}/embeddings/jobs/submit",
        params={"model": model, **options},
        content=_blocks(text()),
        headers=FASTA,
        timeout=600,
    )
    job_id: str = reply.raise_for_status().json()["job_id"]
    return job_id


def status_of(url: str, job_id: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/embeddings/jobs/{job_id}", timeout=60).raise_for_status().json()
    return found


def _blocks(pieces: Iterator[bytes], size: int = 65_536) -> Iterator[bytes]:
    held = bytearray()
    for piece in pieces:
        held += piece
        if len(held) >= size:
            yield bytes(held)
            held.clear()
    yield bytes(held)


def _time_of_job(served: Served, proteins: Sequence[str]) -> float:
    """Seconds from a submission until the result is there."""
    started = time.perf_counter()
    job_id = submit(served.url, served.model, proteins)
    while (found := status_of(served.url, job_id))["status"] not in ENDED:
        time.sleep(POLL_S)
    if found["status"] != "done" or found["progress"]["failed"]:
        raise RuntimeError(f"the job is {found['status']}: {found['reason']} {found['errors'][:1]}")
    return time.perf_counter() - started


async def _beside_a_job(served: Served, stream: Iterator[str], options: argparse.Namespace) -> dict[str, Any]:
    """Small requests one after another, while jobs are worked on."""
    small = fresh_of_length(options.small, options.seed + 1)
    latencies: list[float] = []
    async with connecting(served.url) as clients:
        while len(latencies) < options.beside:
            job_id = await asyncio.to_thread(
                submit, served.url, served.model, list(islice(stream, 4 * options.num))
            )
            await asyncio.to_thread(_until_running, served.url, job_id)
            while len(latencies) < options.beside:
                answer = (await clients.closed_loop([served.call([next(small)])], 1)).require(200).answers[0]
                if (await asyncio.to_thread(status_of, served.url, job_id))["status"] != "running":
                    break
                latencies.append(answer.seconds)
            await asyncio.to_thread(httpx.delete, f"{served.url}/embeddings/jobs/{job_id}", timeout=60)
    return summarise(latencies).rounded()


def _until_running(url: str, job_id: str) -> None:
    """Until its first sequences are done."""
    deadline = time.monotonic() + START_S
    while not status_of(url, job_id)["progress"]["sequences"]:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the job does not begin: {status_of(url, job_id)}")
        time.sleep(POLL_S)


def _take_in(served: Served, options: argparse.Namespace) -> dict[str, Any]:
    """A job of very many proteins: submitted, begun, cancelled."""
    found = load(None, 1000, options.max_length, options.seed + 2)
    proteins = [protein for _, protein in zip(range(options.huge), fresh(found), strict=False)]
    with watching(served.pid) as growth:
        started = time.perf_counter()
        job_id = submit(served.url, served.model, proteins)
        taken_in_s = time.perf_counter() - started
    _until_running(served.url, job_id)
    started = time.perf_counter()
    httpx.delete(f"{served.url}/embeddings/jobs/{job_id}", timeout=60).raise_for_status()
    while _num_waiting(served):
        time.sleep(0.01)
    cancelled_s = time.perf_counter() - started
    return {
        "taken_in_s": round(taken_in_s, 3),
        "megabytes": round(sum(map(len, proteins)) / 1e6, 2),
        "cancelled_s": round(cancelled_s, 3),
        "growth": growth,
    }


def _num_waiting(served: Served) -> int:
    """Sequences and batches that the model's runner has."""
    info = httpx.get(f"{served.url}/embeddings/model/info", params={"model": served.model}, timeout=60).json()
    waiting: int = info["batcher"]["queue_items"] + info["batcher"]["inflight_batches"]
    return waiting
