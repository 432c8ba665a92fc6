"""Ways to the same embeddings: what all of them are given, and what they give."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import bentoml
import numpy as np
import torch
from bentoml.exceptions import NotFound

from models.backends.choice import Precision
from models.catalogue import Model, UnknownModel, find

Contender = Callable[[Sequence[str]], list[np.ndarray]]  # one mean vector a sequence, in order


@dataclass(frozen=True)
class Task:
    """Weights and the device they run on; how the engine is to run there.

    precision: of the engine. budget_tokens: cost of one of its batches at most; None: what suits the device.
    """

    folder: Path
    model: Model
    device: str
    precision: Precision = "auto"
    budget_tokens: int | None = None


def find_task(name: str, precision: Precision = "auto", budget_tokens: int | None = None) -> Task:
    """The model of this name as the store has it, on the best device here.

    Raises:
        SystemExit: the model is unknown or not in the store.
    """
    try:
        model = find(name)
        folder = Path(bentoml.models.get(model.store_name).path)
    except UnknownModel as error:
        raise SystemExit(str(error)) from None
    except NotFound:
        raise SystemExit(f"{name} is not in the model store; see scripts.import_model") from None
    return Task(folder, model, "cuda:0" if torch.cuda.is_available() else "cpu", precision, budget_tokens)
