"""The service with several devices that fail on command; tests/chaos/faults.py says how to command.

bentoml serve tests.chaos.faulty_service:ProteinEmbeddingService
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import models.replicas
import models.runner
import models.statistics
from models.catalogue import Model
from models.runner import RunnerOptions
from tests.chaos.faults import FOLDER, IS_IMPATIENT, NUM_DEVICES, Faults

if TYPE_CHECKING:
    from models.engine import Engine

load_engines = models.replicas.load_engines


def load_faulty_engines(folder: Path, model: Model, options: RunnerOptions) -> list[Engine]:
    """In place of `models.replicas.load_engines`: it is asked, and its replica on the CPU copied."""
    from tests.chaos.faulty_engine import FaultyEngine

    (engine,) = load_engines(folder, model, options)
    faults = Faults(Path(os.environ[FOLDER]))
    count = int(os.environ[NUM_DEVICES])
    return [FaultyEngine(folder, model, engine.choice, faults, number) for number in range(count)]


models.replicas.load_engines = load_faulty_engines
if IS_IMPATIENT in os.environ:
    models.statistics.HANGS_AFTER_S = models.statistics.HANGS_AFTER_TIMES = 1.0
    models.runner.HANGS_FOR_GOOD_S = 4.0

from service import ProteinEmbeddingService  # noqa: E402  # what it makes of its runners is decided above

__all__ = ["ProteinEmbeddingService"]
