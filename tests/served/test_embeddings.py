"""Real sequences through the real service: numbers, order, forms, cache, several workers."""

from __future__ import annotations

import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bentoml
import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, EsmModel

from scripts.local_service import ROOT
from scripts.npz import read_npz
from serving.sequences import parse_fasta
from tests.served.conftest import Served

FASTA = (ROOT / "examples" / "proteins.fasta").read_text()
RECORDS = parse_fasta(FASTA)
SEQUENCES = [record.sequence for record in RECORDS]
HEADERS = {"content-type": "text/x-fasta"}


def compute(served: Served, model: str = "esm2_mini", **body: Any) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The reply in JSON, and the arrays behind its link."""
    reply = served.http.post(f"/embeddings/compute/{model}", json=body)
    assert reply.status_code == 200, reply.text
    file = served.http.get(reply.json()["download_link"])
    assert file.status_code == 200
    return reply.json(), read_npz(file.content)


def reference(served: Served, model: str, sequences: list[str]) -> list[np.ndarray]:
    """Per-residue embeddings by transformers, from the same folder of the model store."""
    tag = served.http.get("/embeddings/model/info", params={"model": model}).json()["tag"]
    folder = bentoml.models.get(tag).path
    encoder = EsmModel.from_pretrained(folder, dtype=torch.float32, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        return [
            encoder(**tokenizer(sequence, return_tensors="pt")).last_hidden_state[0, 1:-1].numpy()
            for sequence in sequences
        ]


@pytest.mark.parametrize("model", ["esm2_mini", "esm2_t6_8M"])
def test_embeddings_are_those_of_transformers(served: Served, model: str) -> None:
    expected = reference(served, model, SEQUENCES)
    _, full = compute(served, model, sequences=SEQUENCES, pooled=False, dtype="float32")
    _, pooled = compute(served, model, sequences=SEQUENCES, dtype="float32")
    for index, rows in enumerate(expected):
        error = np.linalg.norm(full[f"embedding_{index}"] - rows, axis=1) / np.linalg.norm(rows, axis=1)
        assert error.max() < 1e-5  # measured: 1.1e-6
        np.testing.assert_allclose(pooled[f"embedding_{index}"], rows.mean(0), atol=1e-5)


def test_fasta_in_npz_out_keeps_ids_order_and_lengths(served: Served) -> None:
    reply = served.http.post(
        "/embeddings/compute/esm2_mini",
        params={"pooled": False},
        headers=HEADERS | {"accept": "application/x-npz"},
        content=FASTA,
    )
    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/x-npz"
    arrays = read_npz(reply.content)
    assert arrays["ids"].tolist() == [record.id for record in RECORDS]
    assert int(arrays["sequence_count"]) == len(RECORDS)
    assert str(arrays["storage_type"]) == "list_of_arrays"
    manifest = json.loads(str(arrays["manifest"]))
    assert manifest["lengths"] == [len(sequence) for sequence in SEQUENCES]
    assert manifest["tag"].startswith("esm2_mini:")
    assert (manifest["precision"], manifest["dtype"], manifest["trained"]) == ("fp32", "float16", False)
    for index, sequence in enumerate(SEQUENCES):
        assert arrays[f"embedding_{index}"].shape == (len(sequence), 144)
        assert arrays[f"embedding_{index}"].dtype == np.float16


def test_a_file_handed_out_at_once_is_not_kept(served: Served) -> None:
    outputs = served.service.log.parent / "outputs"
    before = set(outputs.iterdir())
    served.http.post(
        "/embeddings/compute/esm2_mini", headers=HEADERS | {"accept": "application/x-npz"}, content=FASTA
    )
    deadline = time.monotonic() + 10
    while set(outputs.iterdir()) > before:  # it is deleted just behind the reply
        assert time.monotonic() < deadline


def test_a_second_pass_is_all_hits_whichever_worker_answers(served: Served) -> None:
    served.http.post("/embeddings/cache/clear")
    first, arrays = compute(served, sequences=SEQUENCES)
    assert first["cache_stats"]["total_hits"] == 0
    for _ in range(8):  # each on a connection of its own: the kernel hands them to either worker
        second, again = compute(served, sequences=SEQUENCES)
        assert second["cache_stats"] == {
            "hit_rate": 1.0,
            "total_hits": len(SEQUENCES),
            "total_requests": len(SEQUENCES),
            "cache_misses": 0,
        }
        assert second["timing"]["runner_calls"] == 0
        for name in ("embedding_0", "embedding_5"):
            np.testing.assert_array_equal(arrays[name], again[name])


def test_duplicates_get_their_own_places(served: Served) -> None:
    reply, arrays = compute(served, sequences=[SEQUENCES[0], SEQUENCES[1], SEQUENCES[0]], ids=["a", "b", "a"])
    assert arrays["ids"].tolist() == ["a", "b", "a"]
    assert [result["id"] for result in reply["results"]] == ["a", "b", "a"]
    np.testing.assert_array_equal(arrays["embedding_0"], arrays["embedding_2"])
    assert not np.array_equal(arrays["embedding_0"], arrays["embedding_1"])


def computed_items(served: Served) -> int:
    """How many sequences the runner has computed since its start."""
    component = served.http.get("/embeddings/model/info?model=esm2_t6_8M").json()
    items: int = component["batcher"]["num_items"]
    return items


def test_equal_sequences_of_concurrent_requests_are_computed_once(served: Served) -> None:
    served.http.post("/embeddings/cache/clear")
    before = computed_items(served)
    body = {"sequences": [SEQUENCES[5] + SEQUENCES[6]]}
    with ThreadPoolExecutor(16) as pool:
        replies = list(
            pool.map(lambda _: served.http.post("/embeddings/compute/esm2_t6_8M", json=body), range(32))
        )
    assert {reply.status_code for reply in replies} == {200}
    assert computed_items(served) == before + 1


def test_mixed_requests_at_once_get_each_their_own_answers(served: Served) -> None:
    served.http.post("/embeddings/cache/clear")
    expected = reference(served, "esm2_mini", SEQUENCES)

    def ask(number: int) -> None:
        order = np.random.default_rng(number).permutation(len(SEQUENCES))[:5]
        _, arrays = compute(
            served, sequences=[SEQUENCES[i] for i in order], pooled=number % 2 == 0, dtype="float32"
        )
        for place, i in enumerate(order):
            wanted = expected[i].mean(0) if number % 2 == 0 else expected[i]
            np.testing.assert_allclose(arrays[f"embedding_{place}"], wanted, atol=5e-5)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(24)))


def test_long_sequences_are_neither_cut_nor_held_back(served: Served) -> None:
    sequences = ["".join(SEQUENCES)[i : i + 3000] for i in range(4)]
    _, arrays = compute(served, sequences=sequences, pooled=False)
    assert [arrays[f"embedding_{i}"].shape for i in range(4)] == [(3000, 144)] * 4


def test_a_downloads_time_ends(served: Served) -> None:
    link = compute(served, sequences=[SEQUENCES[0]])[0]["download_link"]
    request_id = link.rpartition("/")[2]
    outputs = served.service.log.parent / "outputs"
    (path,) = outputs.glob(f"{request_id}.*")
    # As if it were made eleven minutes before
    then = int(time.time()) - 11 * 60
    older = path.rename(path.with_name(path.name.replace(request_id[:10], str(then))))
    os.utime(older, (then, then))
    reply = served.http.get(link.replace(request_id[:10], str(then)))
    assert (reply.status_code, reply.json()["error"]) == (410, "Expired")


def test_a_part_of_a_download_can_be_asked_for(served: Served) -> None:
    link = compute(served, sequences=[SEQUENCES[0]])[0]["download_link"]
    whole = served.http.get(link).content
    part = served.http.get(link, headers={"range": "bytes=2-9"})
    assert (part.status_code, part.content) == (206, whole[2:10])
