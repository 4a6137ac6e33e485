"""The second-order cost of a change of a layer's weight, in terms of the logits. Pure tensor mathematics.

The Hessian of a layer is approximated by the Kronecker product of two small matrices: the second moments of its inputs
and of the gradients at its outputs (K-FAC, Martens and Grosse, ICML 2015, section 3). With the first factor alone,
errors are compensated within each row; with the second, rows compensate each other too (YAQA, Tseng et al., 2025).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DAMPING = 0.01
"""Added to the diagonal of a gram matrix, as a fraction of its mean (SparseGPT, section 4; GPTQ, section 3.3)."""

COLUMNS_AT_ONCE = 256
"""Columns of a gram matrix that one matrix multiplication computes."""


@dataclass(frozen=True)
class Curvature:
    """The two Kronecker factors of a layer: symmetric, positive definite, one dtype, float64 when built."""

    inputs: Tensor
    """(in, in)"""
    outputs: Tensor
    """(out, out), of mean diagonal 1"""

    @classmethod
    def of(cls, inputs: Tensor, outputs: Tensor, rows: float = math.inf) -> Curvature:
        """Build from the sums of x x^T over inputs x, (in, in), and of g g^T over output gradients g, (out, out).

        rows: number of samples in the sums, as `effective_rows` counts them.
        """
        factor = damped(outputs, rows)
        return cls(damped(inputs, rows), factor / factor.diagonal().mean())

    @classmethod
    def of_rows(cls, inputs: Tensor, outputs: int, rows: float = math.inf) -> Curvature:
        """Build for a number of independent outputs, from the sum of x x^T over inputs x, (in, in)."""
        return cls(damped(inputs, rows), torch.eye(outputs, dtype=torch.float64))

    def single(self) -> Curvature:
        """Return the curvature in float32, relative to the mean input, because activations can exceed its range."""
        return Curvature((self.inputs / self.inputs.diagonal().mean()).float(), self.outputs.float())

    def gradient(self, change: Tensor) -> Tensor:
        """Return half the gradient of the cost at a change of the weight: (out, in), the factors' dtype."""
        return self.outputs @ change.to(self.inputs) @ self.inputs

    def cost(self, change: Tensor) -> float:
        """Return the cost of a change (out, in) of the weight; the squared output error when rows are independent."""
        return float((self.gradient(change) * change).sum())

    def diagonal(self) -> Tensor:
        """Return the cost of a unit change of each weight alone: (out, in)."""
        return self.outputs.diagonal()[:, None] * self.inputs.diagonal()


def weighted_gram(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of x x^T over the rows x (n, in), each multiplied by its weight (n,): float64 (in, in)."""
    # Scaled to a peak of one: the squares of activations in models without norms can overflow.
    peak = rows.abs().amax().clamp(min=torch.finfo(rows.dtype).tiny)
    unit = rows / peak
    weighted, gram = unit * weights[:, None], unit.new_empty(unit.shape[1], unit.shape[1])
    for start in range(0, len(gram), COLUMNS_AT_ONCE):  # only one of two symmetric parts is computed
        stop = start + COLUMNS_AT_ONCE
        gram[start:stop, start:] = unit[:, start:stop].T @ weighted[:, start:]
        gram[stop:, start:stop] = gram[start:stop, stop:].T
    return gram.double() * peak.double().square()


def effective_rows(weights: Tensor) -> float:
    """Return the effective sample size of weights (n,), from 1 to n (Kish, 1965)."""
    weights = weights.double()
    return float(weights.sum().square() / weights.square().sum())


def damped(gram: Tensor, rows: float) -> Tensor:
    """Return a gram matrix over `rows` samples with a damped, invertible diagonal: float64, same shape.

    The damping is DAMPING plus one more sample in every direction. Without the latter, directions that a few samples
    do not show would cost nothing.
    """
    total: Tensor = gram.double().clone()
    diagonal = total.diagonal()
    once = diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
    diagonal += (DAMPING + len(total) / rows) * once
    return total
