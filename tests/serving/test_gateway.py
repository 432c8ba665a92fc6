"""What a request asks for, turned into what the pipeline is given; and the terms on which it is worked on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from serving import health
from serving.errors import InvalidRequest, InvalidSequences, TooManySequences
from serving.gateway import TIMEOUT_HEADER, Gateway
from serving.parts import Options
from serving.runners import ServedModel
from serving.schemas import ComputeOptions
from serving.sequences import OnTooLong, Protein, Record
from serving.settings import Settings
from tests.serving.conftest import CountingRunner

TEN = "MKTAYIAKQR"
ONE = [Record("p", TEN)]


@pytest.fixture
async def gateway(served: ServedModel, data_dir: Path) -> AsyncIterator[Gateway]:
    """A gateway for sequences of 5 to 20 residues, three a request, an hour each; nothing here asks its Redis."""
    settings = Settings(
        redis_url=f"unix://{data_dir}/nobody.sock",
        data_dir=data_dir,
        min_sequence_length=5,
        max_sequence_length=20,
        max_sequences_per_request=3,
        request_timeout_s=3600,
    )
    gateway = Gateway.build(settings, {"esm2_mini": served})
    yield gateway
    await gateway.client.aclose()


def test_by_default_a_request_has_the_services_limits(gateway: Gateway, served: ServedModel) -> None:
    proteins, options = gateway.prepare(served, [Record("a", TEN), Record("b", "m" * 20)], ComputeOptions())
    assert proteins == [Protein("a", TEN), Protein("b", "M" * 20)]
    assert options == Options(pooled=True, dtype="float16", window=None)
    with pytest.raises(InvalidSequences, match="21 residues; the most is 20"):
        gateway.prepare(served, [Record("a", "M" * 21)], ComputeOptions())
    with pytest.raises(InvalidSequences, match="4 residues; the least is 5"):
        gateway.prepare(served, [Record("a", "M" * 4)], ComputeOptions())
    with pytest.raises(TooManySequences, match="4 sequences in one request; the limit is 3"):
        gateway.prepare(served, ONE * 4, ComputeOptions())
    with pytest.raises(InvalidRequest, match="no sequence"):
        gateway.prepare(served, [], ComputeOptions())


def test_a_request_can_ask_for_less_than_the_services_length(gateway: Gateway, served: ServedModel) -> None:
    assert gateway.prepare(served, ONE, ComputeOptions(max_length=10))[0] == [Protein("p", TEN)]
    with pytest.raises(InvalidSequences, match="10 residues; the most is 9"):
        gateway.prepare(served, ONE, ComputeOptions(max_length=9))


@pytest.mark.parametrize(("max_length", "expected"), [(6, Protein("p", TEN[:6], (), 10)), (10, Protein("p", TEN))])
def test_a_request_can_have_long_sequences_cut_off(
    gateway: Gateway, served: ServedModel, max_length: int, expected: Protein
) -> None:
    wanted = ComputeOptions(max_length=max_length, on_too_long="truncate")
    proteins, options = gateway.prepare(served, ONE, wanted)
    assert (proteins, options) == ([expected], Options())


def test_without_a_length_of_its_own_a_request_is_cut_off_at_the_services(
    gateway: Gateway, served: ServedModel
) -> None:
    proteins, _ = gateway.prepare(served, [Record("p", "M" * 30)], ComputeOptions(on_too_long="truncate"))
    assert proteins == [Protein("p", "M" * 20, (), 30)]


@pytest.mark.parametrize(("max_length", "window"), [(20, 20), (None, 20)])
def test_a_request_can_have_long_sequences_computed_in_windows(
    gateway: Gateway, served: ServedModel, max_length: int | None, window: int
) -> None:
    wanted = ComputeOptions(pooled=False, dtype="float32", max_length=max_length, on_too_long="window")
    proteins, options = gateway.prepare(served, [Record("p", "M" * 30)], wanted)
    assert proteins == [Protein("p", "M" * 30)]
    assert options == Options(pooled=False, dtype="float32", window=window)


def test_windows_that_are_hardly_longer_than_their_overlap_are_refused(
    gateway: Gateway, served: ServedModel
) -> None:
    with pytest.raises(InvalidRequest, match="max_length: 6; windows have 256 residues at least"):
        gateway.prepare(served, ONE, ComputeOptions(max_length=6, on_too_long="window"))


@pytest.mark.parametrize("on_too_long", ["error", "truncate", "window"])
@pytest.mark.parametrize("max_length", [1, 4, 21, 100_000])
def test_a_length_out_of_the_services_bounds_is_refused(
    gateway: Gateway, served: ServedModel, max_length: int, on_too_long: OnTooLong
) -> None:
    with pytest.raises(InvalidRequest, match=f"max_length: {max_length} is not in 5-20"):
        gateway.prepare(served, ONE, ComputeOptions(max_length=max_length, on_too_long=on_too_long))


@pytest.mark.parametrize("max_length", [5, 20])
def test_the_bounds_themselves_can_be_asked_for(gateway: Gateway, served: ServedModel, max_length: int) -> None:
    assert gateway.prepare(served, [Record("p", "M" * 5)], ComputeOptions(max_length=max_length))


def asking(headers: dict[str, str]) -> HTTPConnection:
    return HTTPConnection({"type": "http", "headers": Headers(headers).raw})


@pytest.mark.parametrize(
    ("asked", "timeout_s"),
    [(None, 3600), ("2.5", 2.5), ("1e1", 10), (" 7 ", 7), ("3600", 3600), ("99999", 3600), ("inf", 3600)],
)
async def test_a_request_is_worked_on_within_its_own_time_or_the_services(
    gateway: Gateway, asked: str | None, timeout_s: float
) -> None:
    headers = {} if asked is None else {TIMEOUT_HEADER.lower(): asked}
    before = asyncio.get_running_loop().time()
    terms = gateway.terms(asking(headers))
    after = asyncio.get_running_loop().time()
    assert before + timeout_s <= terms.deadline <= after + timeout_s
    assert (terms.priority, terms.is_admitted) == ("interactive", False)


@pytest.mark.parametrize("asked", ["", "soon", "0", "-1", "nan", "-inf", "1,5", "1 s"])
async def test_a_time_limit_that_is_none_is_refused(gateway: Gateway, asked: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{TIMEOUT_HEADER}: {asked!r} is not a number of seconds above 0"):
        gateway.terms(asking({TIMEOUT_HEADER: asked}))


async def test_a_long_wrong_value_is_shown_in_part(gateway: Gateway) -> None:
    with pytest.raises(InvalidRequest) as error:
        gateway.terms(asking({TIMEOUT_HEADER: "x" * 5000}))
    assert len(str(error.value)) < 120


async def test_a_gateway_is_ready_when_every_runner_computes(
    gateway: Gateway, runner: CountingRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "CANARY_HOLDS_S", -1)
    assert await gateway.is_ready()
    runner.is_down = True
    assert not await gateway.is_ready()
