"""Selection of tokens. Two operators have an ONNX form of their own (`stages/export/translate.py`).

`vitslim::highest` becomes TopK, in which the lower index of two equal values comes first; `torch.topk` leaves their
order open, and a stable sort has no ONNX form. `vitslim::take_rows` becomes GatherND, which copies whole rows;
`torch.gather` would become GatherElements, which reads one number at a time and needs an index for each of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NORM_EPSILON = 1e-6
"""Added to the length of a vector before the division (TPS, section 3.2)."""


def unit_vectors(vectors: Tensor) -> Tensor:
    """Return vectors of length one, or of length zero for zero vectors: (..., C)."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / (length + NORM_EPSILON)


@torch.library.custom_op("vitslim::highest", mutates_args=())
def highest(values: Tensor, count: int) -> Tensor:
    """Return the positions of the `count` highest values of each row, highest first; of equal ones the lower first.

    values: (B, N) float. Returns int64 (B, count).
    """
    return torch.sort(values, dim=1, descending=True, stable=True)[1][:, :count].contiguous()


@highest.register_fake
def _fake_highest(values: Tensor, count: int) -> Tensor:
    return values.new_empty(values.shape[0], count, dtype=torch.int64)


@torch.library.custom_op("vitslim::take_rows", mutates_args=())
def take_rows(x: Tensor, index: Tensor) -> Tensor:
    """Return the rows of each matrix at these positions: (B, N, C) and int64 (B, n) to (B, n, C)."""
    return torch.gather(x, 1, _expanded(index, x.shape[2]))


@take_rows.register_fake
def _fake_rows(x: Tensor, index: Tensor) -> Tensor:
    return x.new_empty(index.shape[0], index.shape[1], x.shape[2])


def _expanded(index: Tensor, width: int) -> Tensor:
    return index.unsqueeze(-1).expand(-1, -1, width)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG001
    x, index = inputs
    ctx.save_for_backward(index)
    ctx.rows = x.shape[1]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (index,) = ctx.saved_tensors
    whole = grad.new_zeros(grad.shape[0], ctx.rows, grad.shape[2])
    return whole.scatter_add(1, _expanded(index, grad.shape[2]), grad), None


take_rows.register_autograd(_backward, setup_context=_setup_context)

HIGHEST = torch.ops.vitslim.highest.default
TAKE_ROWS = torch.ops.vitslim.take_rows.default
