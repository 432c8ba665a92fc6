"""The service, which tries a model that could not be loaded again after a moment.

bentoml serve tests.served.impatient_service:ProteinEmbeddingService
"""

from __future__ import annotations

import models.runner

models.runner.LOAD_AGAIN_S = 1.0

from service import ProteinEmbeddingService  # noqa: E402  # what it makes of its runners is decided above

__all__ = ["ProteinEmbeddingService"]
