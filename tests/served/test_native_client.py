"""BentoML's own client against the service."""

from __future__ import annotations

import json

import bentoml
import numpy as np
import pytest
from bentoml.exceptions import BentoMLException

from tests.served.conftest import Served

SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEG"]


def test_encode_returns_an_array(served: Served) -> None:
    with bentoml.SyncHTTPClient(served.url) as client:
        embeddings = client.encode(sequences=SEQUENCES)
        assert embeddings.shape == (2, 144)
        assert embeddings.dtype == np.float32
        swapped = client.encode(sequences=SEQUENCES[::-1], model="esm2_mini")
    np.testing.assert_array_equal(embeddings, swapped[::-1])


def test_encode_per_residue_returns_a_file(served: Served) -> None:
    with bentoml.SyncHTTPClient(served.url) as client:
        path = client.encode_per_residue(sequences=SEQUENCES, model="esm2_t6_8M")
        with np.load(path, allow_pickle=False) as arrays:
            shapes = [arrays[f"embedding_{i}"].shape for i in range(2)]
            manifest = json.loads(str(arrays["manifest"]))
    assert shapes == [(len(sequence), 320) for sequence in SEQUENCES]
    assert manifest["trained"] is False


def test_long_sequences_are_cut_off_or_computed_in_windows_where_that_is_asked_for(served: Served) -> None:
    one, other = SEQUENCES[0], SEQUENCES[1] * 10
    with bentoml.SyncHTTPClient(served.url) as client:
        cut_off = client.encode(sequences=[one, other], max_length=260, on_too_long="truncate")
        np.testing.assert_array_equal(cut_off, client.encode(sequences=[one, other[:260]]))
        whole, windowed = (
            client.encode(sequences=[other], **options)
            for options in ({}, {"max_length": 260, "on_too_long": "window"})
        )
        assert not np.array_equal(whole, windowed)
        path = client.encode_per_residue(sequences=[one, other], max_length=260, on_too_long="window")
        with np.load(path, allow_pickle=False) as arrays:
            assert [arrays[f"embedding_{i}"].shape for i in range(2)] == [(22, 144), (350, 144)]
            assert json.loads(str(arrays["manifest"]))["window"] == 260


@pytest.mark.parametrize(
    ("arguments", "status", "reason"),
    [
        ({"sequences": ["MKTJYIAKQRQIS"]}, 422, "'J' at position 4"),
        ({"sequences": []}, 422, "no sequence"),
        ({"sequences": SEQUENCES, "model": "esm2_min"}, 404, "did you mean esm2_mini"),
        ({"sequences": SEQUENCES, "max_length": 22}, 422, "35 residues; the most is 22"),
        ({"sequences": SEQUENCES, "max_length": 5001}, 422, "max_length: 5001 is not in 10-5000"),
        ({"sequences": SEQUENCES, "max_length": 0}, 400, "max_length"),  # as BentoML says it
    ],
)
def test_bad_input_is_explained(served: Served, arguments: dict[str, object], status: int, reason: str) -> None:
    with (
        bentoml.SyncHTTPClient(served.url) as client,
        pytest.raises(BentoMLException, match=reason) as error,
    ):
        client.encode(**arguments)
    assert error.value.error_code == status
