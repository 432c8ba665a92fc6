"""A typical reply of every route, for the documentation pages; tests check that they fit the schemas."""

from __future__ import annotations

from typing import Any

UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"

_SUMMARY: dict[str, Any] = {
    "runner": "runner_prot_t5",
    "embedding_dim": 1024,
    "description": "ProtT5-XL encoder (1.2B parameters), BFD and UniRef50",
    "precision": "bf16",
    "tag": "prot_t5:4c1f0a9be2d7735a",
    "trained": True,
    "warning": None,
}
_LIMITS: dict[str, Any] = {
    "min_sequence_length": 10,
    "max_sequence_length": 5000,
    "max_sequences_per_request": 100,
}

COMPUTE_REQUEST: dict[str, Any] = {
    "sequences": [UBIQUITIN, "mktayiakqrqisfvkshU*"],
    "ids": ["P0CG48", "mine"],
    "pooled": False,
    "dtype": "float16",
    "max_length": 1022,
    "on_too_long": "window",
}
COMPUTE_RESPONSE: dict[str, Any] = {
    "sequences": [UBIQUITIN, "MKTAYIAKQRQISFVKSHU"],
    "results": [
        {
            "index": 0,
            "id": "P0CG48",
            "length": 76,
            "cached": True,
            "device": None,
            "replaced": [],
            "truncated_from": None,
            "error": None,
        },
        {
            "index": 1,
            "id": "mine",
            "length": 19,
            "cached": False,
            "device": "cuda:0",
            "replaced": [[19, "U"]],
            "truncated_from": None,
            "error": None,
        },
    ],
    "cache_stats": {"hit_rate": 0.5, "total_hits": 1, "total_requests": 2, "cache_misses": 1},
    "timing": {"total_ms": 122.31, "cache_ms": 0.61, "inference_ms": 119.9, "cache_hits": 1, "runner_calls": 1},
    "model_info": {
        **_SUMMARY,
        "model": "prot_t5",
        "sequence_length_range": "10-5000",
        "pooled": False,
        "dtype": "float16",
        "shape_description": "[sequences, sequence_length, 1024] (full)",
    },
    "download_link": "/embeddings/download/prot_t5/numpy/1795203159_7bd8ba3b1ec83dfac86ba05a22113d85",
    "warnings": [],
}
MODEL_INFO: dict[str, Any] = {
    **_SUMMARY,
    "model_type": "prot_t5",
    "family": "t5",
    "num_layers": 24,
    "source": "Rostlab/prot_t5_xl_half_uniref50-enc",
    "revision": "main",
    "digest": "sha256:4c1f0a9be2d7735a...",
    "sequence_length_range": "10-5000",
    "replaced_residues": {"U": "X", "Z": "X", "O": "X", "B": "X"},
    "precision_reason": "the GPU has bfloat16 units (compute capability 8.0 or above)",
    "backend": "flex: CUDA, 16-bit, with a position bias",
    "trained_length": 511,
    "devices": ["cuda:0"],
    "per_device": [
        {
            "name": "cuda:0",
            "num_batches": 12,
            "num_items": 310,
            "budget": 32768,
            "cost_per_s": 51200.0,
            "is_rated": True,
            "inflight_batches": 0,
            "is_lost": False,
        }
    ],
    "batcher": {
        "num_items": 310,
        "num_batches": 12,
        "num_joined": 2,
        "num_failed": 0,
        "num_abandoned": 0,
        "num_split": 0,
        "num_expired_calls": 0,
        "num_rejected_calls": 0,
        "queue_items": 0,
        "queue_cost": 0,
        "inflight_batches": 0,
    },
    "inputs": [
        {"name": "input_ids", "datatype": "INT64", "shape": [-1]},
        {"name": "cu_seqlens", "datatype": "INT32", "shape": [-1]},
    ],
    "outputs": [{"name": "hidden_states", "datatype": "FP32", "shape": [-1, 1024]}],
}
MODEL_LIST: dict[str, Any] = {
    "available_models": {"prot_t5": {**_SUMMARY, "status": "available"}},
    "config": {**_LIMITS, "binary_downloads_enabled": True, "download_ttl_minutes": 10.0},
}
CACHE_STATISTICS: dict[str, Any] = {
    "stats": {
        "total_keys": 1250,
        "memory_usage": "45.2MB",
        "hit_rate": 0.78,
        "total_requests": 5000,
        "cache_hits": 3900,
        "cache_misses": 1100,
    },
    "redis_info": {"connected": True, "responsive": True, "version": "7.2.4", "used_memory": "45.2MB"},
}
CACHE_CLEARED: dict[str, Any] = {"status": "cleared", "pattern": "prot_t5_*", "deleted_keys": 310}
HEALTH: dict[str, Any] = {
    "status": "healthy",
    "components": {
        "runner_prot_t5": {
            "connected": True,
            "server_ready": True,
            "model_ready": True,
            "tag": "prot_t5:4c1f0a9be2d7735a",
            "trained": True,
            "devices": ["cuda:0"],
            "queue_size": 0,
        },
        "cache": {"connected": True, "responsive": True, "errors": 0},
    },
    "cache_stats": {"total_keys": 1250, "memory_usage": "45.2MB", "hit_rate": 0.78},
    "config_summary": _LIMITS,
}
SERVICE_CONFIG: dict[str, Any] = {
    "sequence_limits": {"min_length": 10, "max_length": 5000, "max_sequences_per_request": 100},
    "runner": {
        "models": ["prot_t5:4c1f0a9be2d7735a"],
        "precision": "auto",
        "use_kernels": True,
        "batch_tokens": None,
        "batch_queue_enabled": True,
        "batch_queue_max_size": None,
        "batch_queue_max_wait_ms": 0.0,
        "max_queue_tokens": None,
        "text_precision": "auto",
        "text_attention": "auto",
        "text_compile": False,
        "gpus_per_runner": 0,
        "timeout_seconds": 600.0,
    },
    "texts": {
        "default_embedding_model": "sentence-transformers/all-MiniLM-L6-v2",
        "default_reranking_model": None,
        "max_embedding_batch_size": 256,
        "max_reranking_batch_size": 64,
    },
    "redis": {"url": "redis://***@redis:6379", "ttl_days": 30.0, "compression_level": 6, "max_memory_mb": None},
    "jobs": {
        "role": "all",
        "place": "local",
        "concurrency": 1,
        "lease_seconds": 10.0,
        "result_ttl_hours": 72.0,
        "max_sequences_per_job": 100_000,
        "max_job_mb": 512.0,
        "max_jobs_per_key": 100,
        "max_job_sequences_per_key": 1_000_000,
    },
    "features": {
        "binary_downloads": True,
        "full_embeddings": True,
        "log_level": "INFO",
        "download_ttl_minutes": 10.0,
        "gateway_workers": 2,
        "max_concurrent_requests": 256,
        "max_body_mb": 32.0,
        "request_timeout_seconds": 3600.0,
        "shutdown_timeout_seconds": 30.0,
        "liveness_silence_seconds": 600.0,
        "log_format": "text",
        "traces": False,
    },
    "security": {
        "api_keys": 12,
        "admin_api_keys": 1,
        "health_open": True,
        "metrics_open": True,
        "docs_open": True,
        "requests_per_minute": None,
        "tokens_per_minute": 2_000_000,
        "cors_origins": [],
    },
}
SERVICE_INFO: dict[str, Any] = {
    "service": "Protein Embedding Service",
    "version": "1.0.0",
    "status": "running",
    "supported_models": ["prot_t5"],
    "endpoints": ["/embeddings/compute/{model}", "/embeddings/health"],
    "features": {"configurable_via_env": True, "binary_downloads": True},
}
ERROR: dict[str, Any] = {
    "error": "Invalid sequence",
    "detail": "sequence 1 (P12345): 'J' at position 4 is leucine or isoleucine, in no model's vocabulary",
    "items": [{"index": 1, "id": "P12345", "position": 4, "character": "J", "reason": "'J' at position 4 is ..."}],
}

UNKNOWN_MODEL: dict[str, Any] = {
    "error": "Unknown model",
    "detail": "unknown model 'esm2_t33'; did you mean esm2_t33_650M?",
    "known_models": ["esm2_t33_650M", "prot_t5"],
}

_JOB_ID = "1763683200_5f0c2a9b6d1e4387a0b9c8d7e6f50413"
JOB_SUBMITTED: dict[str, Any] = {
    "job_id": _JOB_ID,
    "status": "queued",
    "status_link": f"/embeddings/jobs/{_JOB_ID}",
    "num_sequences": 2768,
    "num_residues": 1_389_416,
    "num_invalid": 1,
    "num_truncated": 0,
    "invalid": [{"index": 7, "id": "P12345", "reason": "4 residues; the least is 10"}],
}
JOB_STATUS: dict[str, Any] = {
    "job_id": _JOB_ID,
    "status": "running",
    "model": "esm2_t33_650M",
    "tag": "esm2-t33-650m:0f2c6b1a9d3e",
    "options": {
        "pooled": True,
        "dtype": "float16",
        "max_length": None,
        "on_too_long": "error",
        "format": "h5",
    },
    "submitted_at": "2026-11-21T00:00:00Z",
    "started_at": "2026-11-21T00:00:01Z",
    "ended_at": None,
    "progress": {
        "sequences": 1200,
        "total_sequences": 2768,
        "residues": 600_000,
        "total_residues": 1_389_416,
        "cached_share": 0.25,
        "failed": 1,
        "residues_per_s": 30_000.0,
        "eta_s": 26.3,
    },
    "errors": [{"index": 7, "id": None, "reason": "4 residues; the least is 10"}],
    "reason": None,
    "download_link": None,
    "size_bytes": None,
    "is_expired": False,
}
JOB_LIST: dict[str, Any] = {"total": 1, "jobs": [JOB_STATUS | {"errors": []}]}
