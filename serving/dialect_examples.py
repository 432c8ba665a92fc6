"""One reply of every route that answers as other services do, for the documentation pages."""

from __future__ import annotations

from typing import Any

# Replies of routes that answer in one of several shapes, by what was asked
PREDICTED: dict[str, Any] = {
    "sequence": "GIVEQCCTSICSLYQLENYCN",
    "sequence_length": 21,
    "embedding": None,
    "embedding_dim": None,
    "attention_shape": [6, 23, 23],
    "gpu_id": 0,
    "inference_time_ms": 21.555,
    "model_name": "esm2_mini",
}
PREDICTED_BATCH: dict[str, Any] = {
    "results": [
        {"sequence": "GIVEQCCTSICSLYQLENYCN", "sequence_length": 21, "gpu_id": -1},
        {"sequence": "MKTVRQERLKSIVRILERSKEPVSGAQL", "sequence_length": 28, "gpu_id": 0},
    ],
    "total_sequences": 2,
    "total_inference_time_ms": 14.652,
    "average_time_per_sequence_ms": 7.326,
    "distribution_info": {
        "total_sequences": 2,
        "num_gpus_used": 1,
        "sequences_per_gpu": {"cache": 1, "gpu_0": 1},
        "gpu_assignments": {"cache": [0], "gpu_0": [1]},
    },
    "model_name": "esm2_mini",
}
EMBEDDED: dict[str, Any] = {
    "embeddings": [[-0.0345, 0.031, 0.0067], [0.0012, -0.0421, 0.0518]],
    "model": "sentence-transformers/all-MiniLM-L6-v2",
    "usage": {"total_tokens": 8},
}
RERANKED: dict[str, Any] = {
    "results": [
        {"index": 0, "score": 0.95, "text": "Deep learning is a subset of machine learning"},
        {"index": 1, "score": 0.02, "text": "The weather is nice today"},
    ],
    "model": "BAAI/bge-reranker-base",
}
OPENAI_EMBEDDED: dict[str, Any] = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [-0.0703, 1.449, 0.9736]}],
    "model": "esm2_t33_650M",
    "usage": {"prompt_tokens": 23, "total_tokens": 23},
}
_OPENAI_MODEL: dict[str, Any] = {
    "id": "esm2_t33_650M",
    "object": "model",
    "created": 1763683200,
    "owned_by": "protein-embedding-service",
}
OPENAI_ERROR: dict[str, Any] = {
    "error": {
        "message": "unknown model 'esm2_t33'; did you mean esm2_t33_650M?",
        "type": "not_found_error",
        "param": None,
        "code": "model_not_found",
    }
}
OPENAI_MODEL, OPENAI_MODELS = _OPENAI_MODEL, {"object": "list", "data": [_OPENAI_MODEL]}
ALL_MODELS: dict[str, Any] = {
    "embedding_models": ["sentence-transformers/all-MiniLM-L6-v2"],
    "reranking_models": [],
    "classification_models": [],
    "sentence-transformers/all-MiniLM-L6-v2": {
        "kind": "embedding",
        "tag": "sentence-transformers--all-minilm-l6-v2:a0bcc0c748d5ff1c",
        "description": "text embedding model (sentence-transformers)",
        "trained": True,
        "status": "available",
        "device": "cpu",
        "devices": ["cpu"],
        "dtype": "torch.float32",
        "precision_reason": "texts are computed as they were trained",
        "backend": "sentence-transformers, sdpa",
        "dim": 384,
        "max_tokens": 256,
        "labels": [],
        "activation": "identity",
        "is_normalized": True,
        "pooling": "mean",
        "prompts": {"query": "", "document": ""},
        "num_parameters": 22713216,
        "architecture": "BertModel",
        "attention": "sdpa",
        "is_compiled": False,
    },
}
SERVER_INFO: dict[str, Any] = {
    "model_id": "sentence-transformers/all-MiniLM-L6-v2",
    "model_sha": "a0bcc0c748d5ff1c",
    "model_dtype": "float32",
    "model_type": {"embedding": {"pooling": "mean"}},
    "max_concurrent_requests": 256,
    "max_input_length": 256,
    "max_batch_tokens": 4096,
    "max_client_batch_size": 256,
    "auto_truncate": False,
    "tokenization_workers": 1,
    "version": "1.0.0",
}
OVERALL_HEALTH: dict[str, Any] = {
    "status": "healthy",
    "message": "2 of 2 models answer, on cpu",
    "model": "sentence-transformers/all-MiniLM-L6-v2",
    "model_name": "esm2_t33_650M",
    "model_loaded": True,
    "models_loaded": ["esm2_t33_650M", "sentence-transformers/all-MiniLM-L6-v2"],
    "models_failed": {},
    "device": "cpu",
    "gpu_count": 0,
    "gpu_ids": [],
    "queue_size": 0,
    "inflight_batches": 0,
    "stats": {
        "sentence-transformers/all-MiniLM-L6-v2": {
            "total_requests": 1250,
            "total_batches": 180,
            "avg_batch_size": 6.9,
            "avg_latency": 0.032,
            "throughput": 215.6,
        }
    },
}
