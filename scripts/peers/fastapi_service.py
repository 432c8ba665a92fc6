"""FastAPI in front of transformers: a request is a batch, computed in the thread pool; the reply is a .npy.

PEER_MODEL_FOLDER=FOLDER uvicorn --factory scripts.peers.fastapi_service:create_app
"""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import numpy as np
from fastapi import FastAPI, Response
from pydantic import BaseModel

from scripts.peers.encoder import FOLDER_VARIABLE, Encoder


class EmbedRequest(BaseModel):
    sequences: list[str]


def create_app() -> FastAPI:
    encoder = Encoder(Path(os.environ[FOLDER_VARIABLE]))
    one_at_a_time = threading.Lock()  # a batch has all cores; two at once only take them from each other
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> str:
        return "ready"

    @app.post("/embed")
    def embed(request: EmbedRequest) -> Response:  # not async: FastAPI runs it in its thread pool
        with one_at_a_time:
            vectors = encoder.embed(request.sequences)
        body = io.BytesIO()
        np.save(body, vectors)
        return Response(body.getvalue(), media_type="application/x-npy")

    return app
