"""Sequences above `max_length`: refused, cut off, or computed in overlapping windows."""

from __future__ import annotations

import json
from typing import Any

import httpx
import numpy as np
import pytest

from scripts.npz import read_npz
from tests.served.conftest import Served

COMPUTE = "/embeddings/compute/esm2_mini"
NPZ = {"accept": "application/x-npz"}
LONG = "MKTAYIAKQRQISFVKSHFSRQLEERLGLI" * 13  # 390 residues: windows of 260 start at 0 and at 130
SHORT = "MQIFVKTLTGKT"


def load(reply: httpx.Response) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a npz and its manifest."""
    assert reply.status_code == 200, reply.text
    arrays = read_npz(reply.content)
    return arrays, json.loads(str(arrays["manifest"]))


def post(served: Served, form: str, headers: dict[str, str], **options: Any) -> httpx.Response:
    """Both sequences, as JSON or as FASTA text."""
    if form == "JSON":
        return served.http.post(COMPUTE, json={"sequences": [LONG, SHORT], **options}, headers=headers)
    text = f">long\n{LONG}\n>short\n{SHORT}\n"
    return served.http.post(
        COMPUTE, content=text, params=options, headers={"content-type": "text/x-fasta", **headers}
    )


def residues(served: Served, *sequences: str) -> list[np.ndarray]:
    """Each computed whole."""
    body = {"sequences": sequences, "pooled": False, "dtype": "float32"}
    arrays, _ = load(served.http.post(COMPUTE, json=body, headers=NPZ))
    return [arrays[f"embedding_{index}"] for index in range(len(sequences))]


@pytest.mark.parametrize("form", ["JSON", "FASTA"])
@pytest.mark.parametrize("options", [{}, {"on_too_long": "error"}])
def test_by_default_it_is_refused(served: Served, form: str, options: dict[str, str]) -> None:
    reply = post(served, form, {}, max_length=260, **options)
    assert reply.status_code == 422
    (item,) = reply.json()["items"]
    assert (item["index"], item["reason"]) == (0, "390 residues; the most is 260")


@pytest.mark.parametrize("form", ["JSON", "FASTA"])
def test_it_is_cut_off_and_that_is_said(served: Served, form: str) -> None:
    options = {"max_length": 260, "on_too_long": "truncate", "pooled": False, "dtype": "float32"}
    body = post(served, form, {}, **options).json()
    assert body["sequences"] == [LONG[:260], SHORT]
    assert [(r["length"], r["truncated_from"]) for r in body["results"]] == [(260, 390), (12, None)]
    arrays, manifest = load(post(served, form, NPZ, **options))
    assert (manifest["truncated_from"], manifest["window"]) == ({"0": 390}, None)
    assert manifest["lengths"] == [260, 12]
    for index, rows in enumerate(residues(served, LONG[:260], SHORT)):
        np.testing.assert_array_equal(arrays[f"embedding_{index}"], rows)


@pytest.mark.parametrize("form", ["JSON", "FASTA"])
def test_it_is_computed_in_windows_whose_overlap_is_averaged(served: Served, form: str) -> None:
    served.http.post("/embeddings/cache/clear")
    options = {"max_length": 260, "on_too_long": "window", "pooled": False, "dtype": "float32"}
    arrays, manifest = load(post(served, form, NPZ, **options))
    assert (manifest["truncated_from"], manifest["window"]) == ({}, 260)
    assert manifest["lengths"] == [390, 12]
    left, right, short, whole = residues(served, LONG[:260], LONG[130:], SHORT, LONG)
    joined = np.concatenate([left[:130], (left[130:] + right[:130]) / 2, right[130:]])
    np.testing.assert_allclose(arrays["embedding_0"], joined, atol=2e-5)  # other batches: 1e-6 apart
    np.testing.assert_allclose(arrays["embedding_1"], short, atol=2e-5)
    assert np.abs(arrays["embedding_0"] - whole).max() > 1e-3

    options["pooled"] = True
    pooled, _ = load(post(served, form, NPZ, **options))
    np.testing.assert_allclose(pooled["embedding_0"], joined.mean(0), atol=2e-5)
    body = post(served, form, {}, **options).json()
    assert [(r["length"], r["cached"], r["truncated_from"]) for r in body["results"]] == [
        *((390, True, None), (12, True, None))
    ]


def test_a_window_of_another_size_is_another_embedding(served: Served) -> None:
    found = [
        load(served.http.post(COMPUTE, json={"sequences": [LONG], **options}, headers=NPZ))[0]["embedding_0"]
        for options in (
            {},
            {"max_length": 260, "on_too_long": "window"},
            {"max_length": 300, "on_too_long": "window"},
            {"max_length": 390, "on_too_long": "window"},
        )
    ]
    whole, small, larger, enough = found
    assert not np.array_equal(whole, small)
    assert not np.array_equal(small, larger)
    np.testing.assert_array_equal(whole, enough)


def test_longer_than_the_service_takes_otherwise_it_still_has_an_embedding(served: Served) -> None:
    sequence = (LONG * 16)[:6000]
    assert served.http.post(COMPUTE, json={"sequences": [sequence]}).status_code == 422
    body = {"sequences": [sequence], "on_too_long": "window", "max_length": 1000, "pooled": False}
    arrays, manifest = load(served.http.post(COMPUTE, json=body, headers=NPZ))
    assert (arrays["embedding_0"].shape, manifest["window"]) == ((6000, 144), 1000)
