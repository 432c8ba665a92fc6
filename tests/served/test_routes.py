"""The routes and JSON shapes that users of the Triton-based service know."""

from __future__ import annotations

from typing import Any

import pytest

from tests.served.conftest import Served

UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"


def get(served: Served, path: str) -> Any:
    reply = served.http.get(path)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_root_says_what_this_is(served: Served) -> None:
    body = get(served, "/")
    assert body["service"] == "Protein Embedding Service"
    assert body["status"] == "running"
    assert body["supported_models"] == ["esm2_mini", "esm2_t6_8M"]
    assert "/embeddings/compute/{model}" in body["endpoints"]
    features = dict(body["features"])
    assert features.pop("redis_download_storage") is False, "downloads are files"
    assert all(features.values())


def test_computing_replies_with_everything_but_the_numbers(served: Served) -> None:
    reply = served.http.post("/embeddings/compute/esm2_mini", json={"sequences": [UBIQUITIN, "mktayia kqrqis*"]})
    assert reply.status_code == 200, reply.text
    body = reply.json()
    assert body["sequences"] == [UBIQUITIN, "MKTAYIAKQRQIS"]
    assert set(body["cache_stats"]) == {"hit_rate", "total_hits", "total_requests", "cache_misses"}
    assert set(body["timing"]) == {"total_ms", "cache_ms", "inference_ms", "cache_hits", "runner_calls"}
    info = body["model_info"]
    assert info["model"] == "esm2_mini"
    assert info["runner"] == "runner_esm2_mini"
    assert info["embedding_dim"] == 144
    assert info["sequence_length_range"] == "10-5000"
    assert info["precision"] == "fp32"
    assert info["pooled"] is True
    assert info["shape_description"] == "[sequences, 144] (pooled)"
    assert body["download_link"].startswith("/embeddings/download/esm2_mini/numpy/")
    assert {*("index", "id", "length", "cached", "device", "replaced", "truncated_from", "error")} == set(
        body["results"][0]
    )


def test_untrained_weights_are_called_so_wherever_they_are_described(served: Served) -> None:
    compute = served.http.post("/embeddings/compute/esm2_t6_8M", json={"sequences": [UBIQUITIN]}).json()
    descriptions = [
        compute["model_info"],
        get(served, "/embeddings/models")["available_models"]["esm2_t6_8M"],
        get(served, "/embeddings/model/info?model=esm2_t6_8M"),
    ]
    for description in descriptions:
        assert description["trained"] is False
        assert "untrained" in description["warning"]
        assert "UNTRAINED" in description["description"]
    assert "untrained" in compute["warnings"][0]
    assert get(served, "/embeddings/health")["components"]["runner_esm2_t6_8M"]["trained"] is False


def test_health_asks_every_component(served: Served) -> None:
    body = get(served, "/embeddings/health")
    assert body["status"] == "healthy"
    assert set(body["components"]) == {"runner_esm2_mini", "runner_esm2_t6_8M", "cache"}
    for name in ("runner_esm2_mini", "runner_esm2_t6_8M"):
        component = body["components"][name]
        assert component["connected"] is component["server_ready"] is component["model_ready"] is True
    assert body["components"]["cache"]["responsive"] is True
    assert set(body["cache_stats"]) == {"total_keys", "memory_usage", "hit_rate"}
    assert body["config_summary"] == {
        "min_sequence_length": 10,
        "max_sequence_length": 5000,
        "max_sequences_per_request": 100,
    }


def test_model_info_names_tag_precision_and_tensors(served: Served) -> None:
    body = get(served, "/embeddings/model/info?model=esm2_t6_8M")
    assert body["model_type"] == "esm2_t6_8M"
    assert body["tag"].startswith("esm2_t6_8m:")
    assert (body["embedding_dim"], body["num_layers"]) == (320, 6)
    assert (body["source"], body["revision"]) == ("untrained", "seed 7")
    assert body["precision_reason"] == "asked for by PRECISION"
    assert [tensor["name"] for tensor in body["inputs"]] == ["input_ids", "cu_seqlens"]
    assert body["outputs"] == [{"name": "hidden_states", "datatype": "FP32", "shape": [-1, 320]}]
    assert body["trained_length"] == 1022
    default = get(served, "/embeddings/model/info")
    assert default["model_type"] == "esm2_mini", "the first is the default"
    assert default["trained_length"] is None


def test_devices_are_reported_where_something_was_computed(served: Served) -> None:
    served.http.post("/embeddings/cache/clear")
    before = get(served, "/embeddings/model/info?model=esm2_mini")
    one, other = UBIQUITIN[5:] + "MKV", UBIQUITIN[7:] + "MKV"  # which no other test embeds
    results = [
        served.http.post("/embeddings/compute/esm2_mini", json={"sequences": sequences}).json()["results"]
        for sequences in ([one], [one, other, other])
    ]
    info = get(served, "/embeddings/model/info?model=esm2_mini")
    assert [device["name"] for device in info["per_device"]] == info["devices"]
    assert results[0][0]["device"] in info["devices"]
    assert (results[1][0]["cached"], results[1][0]["device"]) == (True, None)
    assert results[1][1]["device"] == results[1][2]["device"]
    assert results[1][1]["device"] in info["devices"]
    assert info["batcher"]["num_items"] == before["batcher"]["num_items"] + 2
    assert sum(device["num_items"] for device in info["per_device"]) == info["batcher"]["num_items"]
    assert sum(device["num_batches"] for device in info["per_device"]) == info["batcher"]["num_batches"]
    for device in info["per_device"]:
        assert (device["is_lost"], device["inflight_batches"]) == (False, 0)
        assert device["budget"] > 0
    assert any(device["cost_per_s"] > 0 for device in info["per_device"])


def test_models_are_listed_with_the_limits(served: Served) -> None:
    body = get(served, "/embeddings/models")
    assert list(body["available_models"]) == ["esm2_mini", "esm2_t6_8M"]
    assert {m["status"] for m in body["available_models"].values()} == {"available"}
    assert body["config"] == {
        "min_sequence_length": 10,
        "max_sequence_length": 5000,
        "max_sequences_per_request": 100,
        "binary_downloads_enabled": True,
        "download_ttl_minutes": 10.0,
    }


def test_the_settings_are_shown_without_secrets(served: Served, redis_kind: str) -> None:
    body = get(served, "/embeddings/config")
    assert body["sequence_limits"] == {"min_length": 10, "max_length": 5000, "max_sequences_per_request": 100}
    assert body["redis"]["ttl_days"] == 30
    if redis_kind == "tcp":
        assert body["redis"]["url"].startswith("redis://***@127.0.0.1:")
    else:
        assert body["redis"]["url"] == "embedded"
    assert "correct-horse" not in str(body)
    assert body["features"]["download_ttl_minutes"] == 10
    assert [tag.partition(":")[0] for tag in body["runner"]["models"]] == ["esm2_mini", "esm2_t6_8m"]
    queue = {name: value for name, value in body["runner"].items() if "queue" in name}
    assert queue == {
        "batch_queue_enabled": True,
        "batch_queue_max_size": None,
        "batch_queue_max_wait_ms": 0,
        "max_queue_tokens": None,
    }
    assert (body["features"]["max_concurrent_requests"], body["features"]["max_body_mb"]) == (256, 32)


def test_clearing_by_pattern_leaves_the_other_models_entries(served: Served) -> None:
    served.http.post("/embeddings/cache/clear")
    for model in ("esm2_mini", "esm2_t6_8M"):
        assert served.http.post(f"/embeddings/compute/{model}", json={"sequences": [UBIQUITIN]}).status_code == 200
    assert get(served, "/embeddings/cache/stats")["stats"]["total_keys"] == 2
    cleared = served.http.post("/embeddings/cache/clear", params={"pattern": "esm2_t6_8M_*"}).json()
    assert cleared == {"status": "cleared", "pattern": "esm2_t6_8M_*", "deleted_keys": 1}
    reply = served.http.post("/embeddings/compute/esm2_mini", json={"sequences": [UBIQUITIN]}).json()
    assert reply["cache_stats"]["total_hits"] == 1


def test_cache_statistics_name_redis(served: Served) -> None:
    body = get(served, "/embeddings/cache/stats")
    assert body["redis_info"]["connected"] is True
    assert body["redis_info"]["version"] == served.redis.info()["redis_version"]
    stats = body["stats"]
    assert stats["cache_hits"] + stats["cache_misses"] == stats["total_requests"]


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/healthz", "/metrics", "/schema.json", "/docs.json"])
def test_bentomls_own_routes_stay(served: Served, path: str) -> None:
    assert served.http.get(path).status_code == 200


def test_every_route_is_documented(served: Served) -> None:
    document = get(served, "/openapi.json")
    endpoints = get(served, "/")["endpoints"]
    operations = [(path, one) for path in endpoints for one in document["paths"][path].values()]
    for path, operation in operations:
        assert operation["description"], path
    compute = document["paths"]["/embeddings/compute/{model}"]["post"]
    assert set(compute["requestBody"]["content"]) == {
        *("application/json", "text/x-fasta", "application/x-fasta", "text/plain")
    }
    assert "example" in compute["requestBody"]["content"]["application/json"]["schema"]
    for path, operation in operations:
        (content,) = [
            operation["responses"][code]["content"] for code in ("200", "202") if code in operation["responses"]
        ]
        if "application/json" in content:
            if "example" in content["application/json"]:
                continue
            name = content["application/json"]["schema"]["$ref"].rpartition("/")[2]
            assert "example" in document["components"]["schemas"][name], path
    assert {"400", "404", "413", "415", "422", "429", "503", "504"} <= set(compute["responses"])
    parameters = {(parameter["in"], parameter["name"]) for parameter in compute["parameters"]}
    assert parameters == {
        *(("path", "model"), ("header", "X-Request-Timeout")),
        *(("query", name) for name in ("pooled", "dtype", "max_length", "on_too_long")),
    }
    assert {"max_length", "on_too_long"} <= set(
        compute["requestBody"]["content"]["application/json"]["schema"]["properties"]
    )


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_documentation_pages_need_no_internet(served: Served, page: str) -> None:
    html = served.http.get(page).text
    assets = [part.split('"')[0] for mark in ('src="', 'href="') for part in html.split(mark)[1:]]
    assert assets
    for asset in assets:
        assert asset.startswith("/"), f"{page} asks another host for {asset}"
        assert served.http.get(asset).status_code == 200
