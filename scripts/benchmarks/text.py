"""A text embedder: our engine beside sentence-transformers; requests of one text, one by one and at once."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from models.planning import plan
from models.text import stored as text_store
from models.text.engine import TextEngine, TextItem
from models.text.settings import TextSettings
from scripts.benchmarks.clients import Call, connecting
from scripts.benchmarks.latencies import Latencies, summarise
from scripts.benchmarks.machine import prepare
from scripts.benchmarks.reports import markdown, write_figures
from scripts.benchmarks.services import parse_settings
from scripts.local_service import ROOT, LocalService

NAME = "benchmark-text"
ST_BATCH = 32  # the default of sentence-transformers


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--source", required=True, help="folder, name on the hub, or tag of the model store")
    parser.add_argument("--texts", type=Path, help="one a line (default: lines of this project's documents)")
    parser.add_argument("--num", type=int, default=512, help="texts (default: 512)")
    parser.add_argument("--clients", type=int, default=64, help="at once (default: 64)")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each (default: 5)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the service that is started"
    )
    parser.add_argument("--json", type=Path, help="write the JSON line there too")


def run(options: argparse.Namespace) -> None:
    prepare()
    texts = _texts(options.texts, options.num)
    stored = text_store.resolve(NAME, options.source)
    folder, row = Path(stored.path), text_store.row_of(NAME, stored)
    if row.kind != "embedding":
        raise SystemExit(f"{options.source} is a model for {row.kind}")
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    engine = TextEngine(folder, row, device, TextSettings())
    reference = SentenceTransformer(str(folder), device=device)
    num_tokens = sum(engine.num_tokens(item) for item in _items(engine, texts))
    contenders: dict[str, Callable[[], np.ndarray]] = {
        "our engine": lambda: _by_engine(engine, texts),
        "sentence-transformers": lambda: np.asarray(reference.encode(texts, batch_size=ST_BATCH)),
    }
    vectors = {name: work() for name, work in contenders.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, work in contenders.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    rates = {name: len(texts) / statistics.median(taken) for name, taken in seconds.items()}
    difference = float(np.abs(vectors["our engine"] - vectors["sentence-transformers"]).max())
    one, many, latencies = asyncio.run(_serve(str(stored.tag), texts, options))
    rows = [
        *([f"{name}, texts/s", f"{rate:,.0f}"] for name, rate in rates.items()),
        ["greatest difference of a number", f"{difference:.1e}"],
        ["service, one text after another, texts/s", f"{one:,.0f}"],
        [f"service, {options.clients} at once, texts/s", f"{many:,.0f}"],
        ["times as many", f"{many / one:.2f}"],
        ["p50 and p99 of them, ms", f"{latencies.p50_ms:,.0f}, {latencies.p99_ms:,.0f}"],
    ]
    print(f"\n{markdown([f'{options.source}, {num_tokens / len(texts):.0f} tokens a text', ''], rows)}\n")
    figures = {
        "texts_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "greatest_difference": difference,
        "one_by_one_per_s": round(one, 1),
        "at_once_per_s": round(many, 1),
        "latencies": latencies.rounded(),
        "num": len(texts),
        "num_tokens": num_tokens,
        "clients": options.clients,
        "settings": options.set,
    }
    write_figures(figures, options.source, device, options.json)


def _texts(path: Path | None, num: int) -> list[str]:
    """Different lines of 20 characters at least."""
    paths = [path] if path is not None else [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    lines = (line.strip(" |-#`") for path in paths for line in path.read_text().splitlines())
    found = list(dict.fromkeys(line for line in lines if len(line) >= 20))
    if len(found) < num:
        raise SystemExit(f"there are {len(found)} texts, not {num}")
    return found[:num]


def _items(engine: TextEngine, texts: Sequence[str]) -> list[TextItem]:
    return [item for item in engine.items(texts, truncate=True) if isinstance(item, TextItem)]


def _by_engine(engine: TextEngine, texts: Sequence[str]) -> np.ndarray:
    items = _items(engine, texts)
    results = [
        result
        for chosen in plan([engine.cost(item) for item in items], engine.budget)
        for result in engine.embed([items[index] for index in chosen])
    ]
    return np.array([result for result in results if isinstance(result, np.ndarray)])


async def _serve(tag: str, texts: Sequence[str], options: argparse.Namespace) -> tuple[float, float, Latencies]:
    """Requests of one text answered a second, one by one and many at once; nothing is in the cache."""

    def calls(mark: str) -> Iterator[Call]:
        for index, text in enumerate(texts):  # what is asked for again is another text
            body = json.dumps({"input": f"{mark}{index} {text}", "model": NAME, "truncate": True})
            yield Call("/embed", body.encode(), {"content-type": "application/json"}, 1)

    settings = {
        "MODELS": "none",
        "TEXT_MODELS": f"{NAME}={tag}",
        "LOG_LEVEL": "WARNING",
        **parse_settings(options.set),
    }
    with (
        tempfile.TemporaryDirectory(prefix="pes-benchmark-", ignore_cleanup_errors=True) as folder,
        LocalService(Path(folder), settings) as service,
    ):
        async with connecting(service.url, keeps_bodies=False, timeout_s=120) as clients:
            (await clients.closed_loop(list(calls("warm "))[:64], 8)).require(200)
            ones, manies, latencies = [], [], []
            for number in range(options.rounds):
                one = (await clients.closed_loop(calls(f"one {number} "), 1)).require(200)
                many = (await clients.closed_loop(calls(f"many {number} "), options.clients)).require(200)
                ones.append(len(texts) / one.seconds)
                manies.append(len(texts) / many.seconds)
                latencies += [answer.seconds for answer in many.answers]
    return statistics.median(ones), statistics.median(manies), summarise(latencies)
