"""Copies between host and device."""

from __future__ import annotations

import pytest
import torch

from models.transfer import Transfer


def test_on_the_cpu_nothing_is_copied() -> None:
    transfer = Transfer(torch.device("cpu"))
    tensor = torch.arange(6)
    assert transfer.to_device(tensor).data_ptr() == tensor.data_ptr()
    (back,) = transfer.to_host([tensor])()
    assert back.data_ptr() == tensor.data_ptr()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory and streams are CUDA's; no GPU here")
def test_what_comes_back_is_what_was_computed_before_and_not_after() -> None:
    transfer = Transfer(torch.device("cuda:0"))
    tensor = transfer.to_device(torch.arange(1 << 20, dtype=torch.float32))
    squares = tensor * tensor
    copied = transfer.to_host([squares, tensor])
    del squares
    torch.zeros(1 << 20, device="cuda:0").add_(7)  # may take the freed memory, if it were free
    first, second = copied()
    expected = torch.arange(1 << 20, dtype=torch.float32)
    assert first.is_pinned()
    assert torch.equal(first, expected * expected)
    assert torch.equal(second, expected)
