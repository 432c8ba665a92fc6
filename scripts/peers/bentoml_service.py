"""BentoML's own batching in front of transformers: requests are joined by `batchable=True`; the reply is JSON.

PEER_MODEL_FOLDER=FOLDER bentoml serve scripts.peers.bentoml_service:TransformersService
"""

from __future__ import annotations

import os
from pathlib import Path

import bentoml
import numpy as np

from scripts.peers.encoder import FOLDER_VARIABLE, Encoder

PADDED_TOGETHER = 8  # sorted by length, so that little is padded


@bentoml.service(workers=1, traffic={"timeout": 3600})
class TransformersService:
    def __init__(self) -> None:
        self.encoder = Encoder(Path(os.environ[FOLDER_VARIABLE]))

    @bentoml.api(batchable=True, max_batch_size=100, max_latency_ms=3_600_000)
    def embed(self, sequences: list[str]) -> np.ndarray:
        """(B, D) float32, for as many requests as BentoML has joined."""
        order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
        groups = [order[start : start + PADDED_TOGETHER] for start in range(0, len(order), PADDED_TOGETHER)]
        vectors = np.concatenate([self.encoder.embed([sequences[i] for i in group]) for group in groups])
        return vectors[np.argsort(order)]
