"""The benchmarks as people run them, on esm2_mini with little work: what they print and write, never how fast."""

from __future__ import annotations

import contextlib
import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from models.catalogue import MINI
from scripts.benchmark import main
from scripts.benchmarks import precision
from scripts.benchmarks.curves import BUDGETS, LENGTHS
from scripts.benchmarks.machine import cpu_name
from scripts.benchmarks.reports import markdown
from scripts.import_model import main as import_model
from tests.models.stores import own_store

DESCRIPTION = {"model", "commit", "versions", "cpu", "device", "num_threads"}


@dataclass(frozen=True)
class Report:
    """What a benchmark printed, and its JSON line."""

    text: str
    line: dict[str, Any]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A model store with esm2_mini in it."""
    with own_store(tmp_path_factory.mktemp("store") / "models"), contextlib.redirect_stdout(io.StringIO()):
        import_model([MINI.name])
        yield


def report(folder: Path, *arguments: str) -> Report:
    """Runs a benchmark. The last line must be JSON, the same as in the file."""
    printed, path = io.StringIO(), folder / "line.json"
    with contextlib.redirect_stdout(printed):
        main([*arguments, "--model", MINI.name, "--json", str(path)])
    assert printed.getvalue().splitlines()[-1] == path.read_text().rstrip()
    return Report(printed.getvalue(), json.loads(path.read_text()))


@pytest.fixture(scope="module")
def engine(store: None, tmp_path_factory: pytest.TempPathFactory) -> Report:
    peers = "transformers-fp32,transformers-bf16-best,extract"
    asked = (
        "--compare",
        peers,
        "--backends",
        "native,torch",
        "--num",
        "3",
        "--max-length",
        "120",
        "--rounds",
        "1",
    )
    return report(tmp_path_factory.mktemp("engine"), "engine", *asked)


def test_the_engine_line_has_every_figure(engine: Report) -> None:
    line = engine.line
    assert line.keys() >= DESCRIPTION | {
        "precision",
        "backend",
        "budget_tokens",
        "sequences",
        "rounds",
        "failures",
    }
    assert line["model"] == "esm2_mini"
    assert line["versions"].keys() == {"python", "torch", "transformers", "numpy", "fair-esm"}
    assert line["num_sequences"] == 3
    assert line["peak_share"] == pytest.approx(line["gflops"] / line["peak_gflops"], abs=2e-3)
    assert line["failures"] == {}


def test_every_peer_and_backend_has_its_rate(engine: Report) -> None:
    sizes = [f"transformers-bf16-sorted-{size}" for size in (1, 2, 4, 8)]
    peers = engine.line["peers"]
    assert peers.keys() == {"transformers-fp32", "extract", "transformers-bf16-best", *sizes}
    assert peers["transformers-bf16-best"] == max(peers[size] for size in sizes)
    assert engine.line["backends"].keys() == {"packed-torch"}
    assert engine.line["engines"]["packed-torch"]["backend"].startswith("torch")
    assert min([engine.line["residues_per_s"], *peers.values()]) > 0


def test_all_contenders_did_the_same_work(engine: Report) -> None:
    cosines = engine.line["least_cosine"]
    assert cosines.keys() == (engine.line["peers"].keys() | {"packed-torch"}) - {"transformers-bf16-best"}
    # Measured with bf16 in the engine: 0.99997; a mean without the last residue is at 0.9993 or below
    assert min(cosines.values()) > 0.9998


def test_memory_is_measured_of_all_but_beaten_ways(engine: Report) -> None:
    memory = engine.line["memory_mb"]
    best = {name for name in memory if "sorted" in name}
    assert len(best) == 1
    assert memory.keys() - best == {"packed", "packed-torch", "transformers-fp32", "extract"}


def test_the_engine_table_is_markdown(engine: Report) -> None:
    table = [line for line in engine.text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert len(table) == 2 + 8 + 1  # header and rule, contenders, the peak
    assert sum("(best)" in line for line in table) == 1


def test_curves_cover_every_length_and_budget_and_are_drawn(store: None, tmp_path: Path) -> None:
    plot = tmp_path / "curves.png"
    size = ("--num", "2", "--max-length", "120", "--rounds", "1", "--plot", str(plot))
    line = report(tmp_path, "curves", *size).line
    assert line.keys() >= DESCRIPTION | {"precision", "backend", "longest_memory_mb"}
    assert list(line["by_length"]) == [str(length) for length in LENGTHS]
    assert list(line["by_budget"]) == [str(budget) for budget in BUDGETS]
    assert line["by_length"]["500"]["relative_time"] == 1
    # 500 residues cost 502 + 502^2 / (6 * 144) = 793; one sequence is run even if it is above the budget
    assert line["by_length"]["500"]["num_sequences"] == line["budget_tokens"] // 793
    assert line["by_length"]["5000"]["num_sequences"] == 1
    assert line["longest_memory_mb"] > 5000 * MINI.dim * 4 / 1e6  # the sum between the layers alone
    header = plot.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    assert struct.unpack(">II", header[16:]) == (1200, 480)


def test_precision_is_measured_on_both_kinds_of_weights(
    store: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert precision.EXAMPLES.exists()
    few = tmp_path / "few.fasta"
    few.write_text("".join(f">{length}\n{'MKTAYIAKQR' * length}\n" for length in (3, 8)))
    monkeypatch.setattr(precision, "EXAMPLES", few)
    line = report(tmp_path, "precision", "--num", "1", "--max-length", "100").line
    assert line.keys() >= DESCRIPTION
    assert line["num_sequences"] == 1 + 2  # and the examples
    assert line["cosines"].keys() == {"as stored", "outlier channels"}
    for likenesses in line["cosines"].values():
        kinds = {"engine, bf16, torch", "engine, fp16, torch", "transformers, bf16", "transformers, fp16"}
        assert likenesses.keys() == {"engine, bf16, own kernels", *kinds}
        for kind in kinds:
            likeness = likenesses[kind]
            # Measured: 0.99976 for transformers in bf16 with outliers; float16 is nearer than bfloat16
            assert 0.9995 < likeness["least"] <= likeness["percentile_1"] <= likeness["median"] < 1
            assert likeness["num_failed"] == 0
        for who in ("engine, {}, torch", "transformers, {}"):
            assert likenesses[who.format("bf16")]["median"] < likenesses[who.format("fp16")]["median"]
    assert line["outlier_ratios"]["as stored"][1] < 5 < 20 < line["outlier_ratios"]["outlier channels"][0]


def test_what_is_not_known_is_refused_in_one_line(store: None, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, reason in (
        (
            ["--model", "esm2_mini", "--compare", "extract,nobody"],
            "--compare: nobody is none of transformers-fp32",
        ),
        (["--model", "esm2_mini", "--backends", "metal"], "--backends: metal is none of native, torch"),
        (["--model", "esm2_mini", "--backends", ""], "--backends: at least one of native, torch"),
        (["--model", "esm2_t6_8M"], "esm2_t6_8M is not in the model store"),
        (["--model", "esm2"], "unknown model 'esm2'"),
    ):
        with pytest.raises(SystemExit, match=reason):
            main(["engine", *arguments])


def test_a_table_has_columns_of_even_width() -> None:
    assert markdown(["who", "n"], [["a", "1,000"], ["bcde", "2"]]).splitlines() == [
        "| who  |     n |",
        "| ---- | ----: |",
        "| a    | 1,000 |",
        "| bcde |     2 |",
    ]


def test_the_processor_is_called_what_it_calls_itself(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel\t\t: 207\nmodel name\t: Some Processor @ 2.00GHz\n")
    assert cpu_name(cpuinfo) == "Some Processor @ 2.00GHz"
