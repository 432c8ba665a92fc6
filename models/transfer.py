"""Copies between host and device that the arithmetic does not wait for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class Transfer:
    """To one device and back. On the CPU a tensor is where it is needed already.

    On CUDA copies go through page-locked memory; those back run on a stream of their own, so that the next batch
    is computed while the last one's results are on their way.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_cuda = device.type == "cuda"
        self._returning = torch.cuda.Stream(device) if self._is_cuda else None  # type: ignore[no-untyped-call]

    def to_device(self, tensor: Tensor) -> Tensor:
        if self._is_cuda:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def to_host(self, tensors: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Starts the copies; the function that it gives waits for them and hands them over."""
        if self._returning is None:
            return lambda: list(tensors)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._returning.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._returning):
            copies = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for copy, tensor in zip(copies, tensors, strict=True):
                copy.copy_(tensor, non_blocking=True)
                tensor.record_stream(self._returning)  # its memory is not given to others before
            arrived.record(self._returning)

        def wait() -> list[Tensor]:
            arrived.synchronize()
            return copies

        return wait
