"""One block of an encoder: attention, then two linear layers, each added to the running sum."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from models.backends.base import AttendPack, Hidden


@dataclass(frozen=True)
class Block:
    """The functions of one block, as models/backends/base.py describes them."""

    attention_norm: Callable[[Tensor], Hidden]
    qkv: Callable[[Hidden], Tensor]
    add_attended: Callable[[Hidden, Tensor], None]
    feed_forward_norm: Callable[[Tensor], Hidden]
    up: Callable[[Hidden], Hidden]
    add_down: Callable[[Hidden, Tensor], None]

    def add_to(self, x: Tensor, attend: AttendPack, scale: float) -> None:
        """What the block adds to the (T, D) float32 sum of a pack, in place."""
        self.add_attended(attend(self.qkv(self.attention_norm(x)), scale), x)
        self.add_down(self.up(self.feed_forward_norm(x)), x)
