"""What a deployment decides about its text models. No torch here: every process reads it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TextSettings:
    """What a deployment decides about its text models.

    precision: of the arithmetic; "auto" is fp32, in which the answer is the reference's. attention: the name that
    transformers has for it; "auto" leaves it to transformers. compiled: by torch.compile.
    """

    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    compiled: bool = False
