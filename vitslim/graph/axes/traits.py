"""Traits of operators, besides their axis rules. Each rule file lists the operators that have them.

A pass asks `vitslim.graph.axes.operators.has_trait` and holds no list of operators of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

Traits = Mapping["Trait", tuple[str, ...]]
"""Trait to the full names, with overload, of the operators that have it: `aten.linear.default`."""


class Trait(Enum):
    """One property of an operator."""

    LAYER = auto()
    """A linear or convolution: operand 1 is its weight and operand 2 its bias."""
    NORM = auto()
    """Normalizes activations; another layer begins after it."""
    ROW_NORM = auto()
    """Normalizes over the last dimensions: operand 1 is their shape, operand 2 the weight."""
    ADDITION = auto()
    """Adds two tensors, as a residual connection does."""
    ATTENTION = auto()
    """Fused scaled-dot-product attention of operands query, key, value."""
    MATMUL = auto()
    """Multiplies (..., n, k) by (..., k, m): operands 0 and 1, both activations."""
    CONTRACTION = auto()
    """Multiplies two activations and sums over an axis; also in other forms than MATMUL, such as einsum."""
    SOFTMAX = auto()
    LOGITS = auto()
    """May stand between an attention matmul and its softmax: scale, mask, position bias, cast, quantizer."""
    MOVES = auto()
    """Rearranges or selects values, or averages over other dimensions than channels.

    A shift and a factor per channel pass through unchanged.
    """
    COPIES = auto()
    """Repeats or copies values, so that all channels are treated alike."""
    ROWWISE = auto()
    """Elementwise, and computed as well on the rows (batch * ..., channels) of its operands."""
    INDEXWISE = auto()
    """Elementwise: each index of the result needs only the same index of the operands."""
    COMBINES = auto()
    """Adds, subtracts or multiplies two tensors elementwise."""
    SQUEEZE = auto()
    """Reduces the tokens of operand 0, (batch, tokens, channels); all channels are treated alike."""
    ANY_BASIS = auto()
    """The result is the same in any orthonormal basis of the channels of operand 0."""
    SAME_SHAPE = auto()
    """The result has the shape and dtype of the first operand where all tensor operands have it."""
    BOUNDED_BELOW = auto()
    """The results are nowhere far below zero, so that the largest value of a token has the largest magnitude."""
