"""What is asked of the devices that a runner computes on."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from models import replicas
from models.statistics import DeviceStatistics


def test_a_gpu_that_is_lost_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(device: torch.device) -> tuple[int, int]:
        if device.index == 1:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return 30, 80

    monkeypatch.setattr(torch.cuda, "mem_get_info", ask)
    engines = [SimpleNamespace(device=torch.device(name)) for name in ("cuda:0", "cuda:1", "cpu")]
    live = [DeviceStatistics(1) for _ in engines]
    assert replicas.gpu_memory(engines, live) == {"cuda:0": (50, 80)}, "of one that is just lost nothing is known"
    assert replicas.gpu_memory(engines[1:2], [DeviceStatistics(1, is_lost=True)]) == {}
