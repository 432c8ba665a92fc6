"""The examples of the five systems that this one unites, as their users run them; host, port and file names apart.

What each prints is checked against the shape that its own documentation shows.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.served.texts import CLASSIFIER, EMBEDDER, RERANKER, SECOND_CLASSIFIER, TextService

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")

NUMBER = (int, float)
EIGHT = """
      "MKTVRQERLKSIVRILERSKEPVSGAQL",
      "KALTARQQEVFDLIRDHISQTGMPPTRAEIAQ",
      "MSGSHHHHHHSSGLVPRGSH",
      "MNIFEMLRIDEGLRLKIYKDTEGYYTIGIGHLL",
      "MVLSPADKTNVKAAWGKVGAHAGEYGAEALERM",
      "GLSDGEWQQVLNVWGKVEADIPGHGQEVLIRLFK",
      "MHSSIVLATVLFVAIASASKTRELCMKSLEHAKVG",
      "DYKDDDDKGSENLYFQSGSHHHHHHSSGLVPRGS"
"""


def run(service: TextService, command: str, folder: Path) -> str:
    """What a shell prints for an example, with this service in place of the one it was written for."""
    here = re.sub(r"http://localhost:\d+", service.url, command)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", here], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def answer(service: TextService, command: str, folder: Path) -> Any:
    return json.loads(run(service, command, folder))


def are_vectors(found: list[list[float]], count: int, dim: int) -> bool:
    return len(found) == count and all(
        len(vector) == dim and all(isinstance(value, NUMBER) for value in vector) for vector in found
    )


# 000: Protein Embedding Service on Triton. Its models are prot_t5 and esm2_t33_650M


@pytest.mark.parametrize("model", ["prot_t5_mini", "esm2_mini"])
def test_000_compute_download_and_clear(texts: TextService, tmp_path: Path, model: str) -> None:
    computed = answer(
        texts,
        f"""
curl -X POST "http://localhost:8000/embeddings/compute/{model}" \\
  -H "Content-Type: application/json" \\
  -d '{{
    "sequences": [
      "MKTVRQERLKSIVRILERSKEPVSGAQLAEELSVSRQVIVQDIAYLRSLGYNIVATPRGYVLAGG",
      "MKTAYIAELSVSRQVIVQDIAYLRSLGYNIVATPRGYVLAGG"
    ],
    "pooled": false
  }}'
""",
        tmp_path,
    )
    assert computed["cache_stats"]["total_requests"] == 2
    link = computed["download_link"]
    run(texts, f'curl -O "http://localhost:8000{link}"', tmp_path)
    assert (tmp_path / link.rpartition("/")[2]).stat().st_size > 100
    cleared = answer(
        texts, f'curl -X POST "http://localhost:8000/embeddings/cache/clear?pattern={model}_*"', tmp_path
    )
    assert cleared["deleted_keys"] >= 1
    info = answer(texts, f'curl "http://localhost:8000/embeddings/model/info?model={model}"', tmp_path)
    assert info["model_type"] == model
    answer(texts, 'curl -X POST "http://localhost:8000/embeddings/cache/clear"', tmp_path)


# 001: ESM-2 multi-GPU inference


def test_001_health(texts: TextService, tmp_path: Path) -> None:
    found = answer(texts, "curl http://localhost:8000/health | python3 -m json.tool", tmp_path)
    assert found["status"] == "healthy"
    assert found["gpu_count"] == len(found["gpu_ids"])
    assert found["model_loaded"] is True
    assert found["model_name"] == "esm2_mini"
    assert isinstance(found["message"], str)


def test_001_single_prediction(texts: TextService, tmp_path: Path) -> None:
    command = """
curl -X POST http://localhost:8000/predict \\
  -H "Content-Type: application/json" \\
  -d '{"sequence": "MKTVRQERLKSIVRILERSKEPVSGAQL", "include_embeddings": false}'
"""
    found = answer(texts, command, tmp_path)
    assert found["sequence"] == "MKTVRQERLKSIVRILERSKEPVSGAQL"
    assert found["sequence_length"] == 28
    assert found["embedding"] is None
    assert found["embedding_dim"] is None
    assert found["attention_shape"] is None
    assert found["gpu_id"] in (0, -1)
    assert found["inference_time_ms"] > 0
    assert found["model_name"] == "esm2_mini"
    found = answer(
        texts, command.replace("false", "true").replace("true}", 'true, "include_attention": true}'), tmp_path
    )
    assert are_vectors([found["embedding"]], 1, 144)
    assert found["embedding_dim"] == 144
    assert found["attention_shape"] == [6, 30, 30]


def test_001_batch_prediction(texts: TextService, tmp_path: Path) -> None:
    found = answer(
        texts,
        f"""
curl -X POST http://localhost:8000/predict/batch \\
  -H "Content-Type: application/json" \\
  -d '{{
    "sequences": [{EIGHT}
    ],
    "include_embeddings": false
  }}' | python3 -m json.tool
""",
        tmp_path,
    )
    sequences = re.findall(r"[A-Z]{20,}", EIGHT)
    assert [result["sequence"] for result in found["results"]] == sequences
    assert found["total_sequences"] == 8
    assert found["average_time_per_sequence_ms"] == pytest.approx(found["total_inference_time_ms"] / 8, abs=1e-3)
    spread = found["distribution_info"]
    assert spread["total_sequences"] == 8
    assert sorted(index for indices in spread["gpu_assignments"].values() for index in indices) == list(range(8))
    assert spread["sequences_per_gpu"] == {name: len(i) for name, i in spread["gpu_assignments"].items()}
    assert spread["num_gpus_used"] == len(spread["gpu_assignments"].keys() - {"cache"})


# 002: Inference API


def test_002_embed(texts: TextService, tmp_path: Path) -> None:
    found = answer(
        texts,
        """
curl -X POST http://localhost:8001/embed \\
  -H "Content-Type: application/json" \\
  -d '{"input_text": "Hello, world!"}'
""",
        tmp_path,
    )
    assert found.keys() == {"embedding", "model"}
    assert are_vectors([found["embedding"]], 1, 384)
    assert found["model"] == EMBEDDER


def test_002_health_and_ready(texts: TextService, tmp_path: Path) -> None:
    found = answer(texts, "curl http://localhost:8001/health", tmp_path)
    assert found["status"] == "healthy"
    assert found["model"] == EMBEDDER
    assert found["device"] == "cpu"
    assert found["queue_size"] == 0
    assert found["inflight_batches"] == 0
    assert answer(texts, "curl http://localhost:8001/ready", tmp_path) == {"status": "ready"}


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ('{"input_text": ""}', 422, "text 0: it is empty"),
        ('{"input_text": "  "}', 422, "text 0: it is empty"),
        (json.dumps({"input_text": "a" * 1025}), 422, "at most 1024 characters"),
        ('{"input_text": 5}', 422, "input_text: Input should be a valid string"),
        ("{", 400, "the body is no JSON"),
        ('{"text": "a"}', 422, "none of the fields input_text, input, inputs"),
    ],
)
def test_002_errors(texts: TextService, body: str, status: int, reason: str) -> None:
    reply = texts.http.post("/embed", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == status
    assert reply.json().keys() >= {"error", "detail"}
    assert reason in reply.json()["detail"]


# 003: Encoder Model Server


PYTHON_003 = """
import json
import requests

# Single text classification
response = requests.post("http://localhost:8000/predict", json={
    "texts": "This is a sample text to classify"
})
result = response.json()

# Batch text classification
response = requests.post("http://localhost:8000/predict", json={
    "texts": ["Text 1", "Text 2", "Text 3"]
})
results = response.json()

# With specific model (if multiple loaded)
response = requests.post("http://localhost:8000/predict", json={
    "texts": "Sample text",
    "model_name": "wandb/WeaveBiasScorerV1"
})
print(json.dumps([result, results, response.json()]))
"""


def test_003_classification(texts: TextService, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(re.sub(r"http://localhost:\d+", texts.url, PYTHON_003))
    one, several, other = answer(texts, "python example.py", tmp_path)
    for reply, model in ((one, CLASSIFIER), (several, CLASSIFIER), (other, SECOND_CLASSIFIER)):
        assert reply.keys() == {"request_id", "results", "processing_time", "model_used"}
        assert reply["processing_time"] > 0
        assert reply["model_used"] == model
    assert len({one["request_id"], several["request_id"], other["request_id"]}) == 3
    assert [result["text"] for result in several["results"]] == ["Text 1", "Text 2", "Text 3"]
    for result in (one["results"], other["results"], *several["results"]):
        assert result.keys() == {"prediction", "probabilities", "label", "text"}
        assert sum(result["probabilities"]) == pytest.approx(1)
        assert result["probabilities"][result["prediction"]] == max(result["probabilities"])
        assert result["label"] == ["calm", "rude", "unclear"][result["prediction"]]


def test_003_health_and_models(texts: TextService, tmp_path: Path) -> None:
    before = answer(texts, "curl http://localhost:8000/health", tmp_path)
    texts.http.post("/predict", json={"texts": ["one more", "and another"]}).raise_for_status()
    found = answer(texts, "curl http://localhost:8000/health", tmp_path)
    assert CLASSIFIER in found["models_loaded"]
    stats = found["stats"][CLASSIFIER]
    assert stats.keys() == {"total_requests", "total_batches", "avg_batch_size", "avg_latency", "throughput"}
    assert stats["total_requests"] == before["stats"][CLASSIFIER]["total_requests"] + 1
    assert stats["avg_latency"] > 0
    assert stats["throughput"] > 0
    about = answer(texts, "curl http://localhost:8000/models", tmp_path)[CLASSIFIER]
    assert about["num_parameters"] > 1000
    assert about["device"] == "cpu"
    assert about["dtype"] == "torch.float32"


# 004: Embedding inference API


def test_004_embed(texts: TextService, tmp_path: Path) -> None:
    found = answer(
        texts,
        """
curl -X POST http://localhost:8090/embed \\
  -H "Content-Type: application/json" \\
  -d '{
    "input": ["hello world", "semantic search"],
    "model": "BAAI/bge-small-en-v1.5"
  }'
""",
        tmp_path,
    )
    assert found.keys() == {"embeddings", "model", "usage"}
    assert are_vectors(found["embeddings"], 2, 384)
    assert found["model"] == EMBEDDER
    assert found["usage"] == {"total_tokens": 8}  # [CLS], two words, [SEP] each


def test_004_rerank(texts: TextService, tmp_path: Path) -> None:
    found = answer(
        texts,
        """
curl -X POST http://localhost:8090/rerank \\
  -H "Content-Type: application/json" \\
  -d '{
    "query": "machine learning",
    "documents": [
      "Deep learning is a subset of machine learning",
      "The weather is nice today"
    ],
    "model": "BAAI/bge-reranker-base"
  }'
""",
        tmp_path,
    )
    assert found["model"] == RERANKER
    scores = [result["score"] for result in found["results"]]
    assert scores == sorted(scores, reverse=True)
    documents = ["Deep learning is a subset of machine learning", "The weather is nice today"]
    assert sorted(result["index"] for result in found["results"]) == [0, 1]
    for result in found["results"]:
        assert result.keys() == {"index", "score", "text"}
        assert result["text"] == documents[result["index"]]
        assert 0 < result["score"] < 1


def test_004_rerank_keeps_the_best(texts: TextService, tmp_path: Path) -> None:
    """The request of its reference, sent by curl."""
    (tmp_path / "request.json").write_text(
        """
{
  "query": "machine learning",
  "documents": [
    "Deep learning is a subset of machine learning",
    "The weather is nice today",
    "Neural networks are used in ML"
  ],
  "model": "BAAI/bge-reranker-base",
  "top_n": 2
}
"""
    )
    command = 'curl -X POST http://localhost:8090/rerank -H "Content-Type: application/json" -d @request.json'
    found = answer(texts, command, tmp_path)
    everything = answer(texts, command.replace("@request.json", "\"$(sed 's/: 2$/: 3/' request.json)\""), tmp_path)
    assert len(found["results"]) == 2
    assert found["results"] == everything["results"][:2]


def test_004_models_and_probes(texts: TextService, tmp_path: Path) -> None:
    found = answer(texts, "curl http://localhost:8090/models", tmp_path)
    assert found["embedding_models"] == [EMBEDDER, "esm2_mini", "prot_t5_mini"]
    assert found["reranking_models"] == [RERANKER]
    answer(texts, "curl --fail http://localhost:8090/health/ready", tmp_path)
    answer(texts, "curl --fail http://localhost:8090/health/live", tmp_path)
