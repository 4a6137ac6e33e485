"""Bits that a stage learned for weights and activations."""

from __future__ import annotations

from typing import Literal

from vitslim.results.value import Value


class TensorBits(Value):
    """Bits that a stage learned for one weight or activation."""

    layer: str
    """`blocks.0.attn.qkv`, or `blocks.0.attention.query` for an operand of attention."""
    operand: Literal["weight", "activation"]
    learned: float
    """Before it was rounded to an allowed width."""
    bits: int
    """Bits of its integers."""
    container: int
    """Bits of the type that a file stores them in."""
