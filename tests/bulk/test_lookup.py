"""The service's cache, asked by a run, on a real Redis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import redis

from bulk.lookup import Lookup
from serving.cache import KeyParts, cache_key, encode
from serving.redis import EmbeddedRedis
from tests.bulk.conftest import Make

PARTS = KeyParts("esm2_mini", "0123", "fp32", "float32", pooled=True)


def test_what_the_service_has_is_found_and_nothing_else(
    embedded_redis: EmbeddedRedis, make_workload: Make
) -> None:
    url = f"unix://{embedded_redis.socket}"
    embedding = np.arange(144, dtype=np.float32)
    with redis.Redis.from_url(url) as client:
        client.set(cache_key(PARTS, "MKTAYI"), encode(embedding, 1))
        client.set(cache_key(PARTS, "GIVEQC"), encode(embedding[:10], 1))  # of another width
        client.set(cache_key(PARTS, "ACDEFG"), b"no embedding")
        found = Lookup(make_workload(), "fp32", url).find(["MMMMM", "MKTAYI", "GIVEQC", "ACDEFG"])
        other_precision = Lookup(make_workload(), "bf16", url).find(["MKTAYI"])
        client.flushdb()
    assert list(found) == [1]
    np.testing.assert_array_equal(found[1], embedding)
    assert other_precision == {}


def test_without_an_answer_everything_is_computed(tmp_path: Path, make_workload: Make) -> None:
    assert Lookup(make_workload(), "fp32", f"unix://{tmp_path}/none.sock").find(["MKTAYI"]) == {}
