"""Hessian-aware saliency of structural units (NViT, Yang et al., CVPR 2023, arXiv 2110.04869).

A unit is one index of an axis: a channel of the embedding, a head, a dimension of queries and keys, of values, or a
hidden unit. Its saliency is the square of the sum of weight times gradient over the parameters that are removed with
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vitslim.graph.axes import Axis

Scores = dict[str, Tensor]
"""Axis name to one value for each unit: float64 (axis size,)."""

DIVISORS = {"heads": 6.0, "qk": 2.0, "v": 2.0}
"""Divisor of the sum of a unit before it is squared, as in the released code. The sum of a channel of the embedding is
divided by the number of blocks, that of a hidden unit by 1."""


@dataclass(frozen=True)
class Linked:
    """One dimension of a parameter in which the units of an axis occur."""

    axis: str
    size: int
    """Number of units of the axis."""
    parameter: str
    dim: int
    index: Tensor
    """int64 (length of the dimension,): the unit at each position, -1 where the axis does not occur."""


def linked_parameters(axes: Iterable[Axis], parameters: Mapping[str, Tensor]) -> list[Linked]:
    """Return all occurrences of the axes in parameters: weights, biases, norms, tokens and position embeddings."""
    return [
        Linked(axis.name, axis.size, site.parameter, site.dim, torch.from_numpy(site.index))
        for axis in axes
        for site in axis.sites
        if site.parameter in parameters
    ]


@dataclass(frozen=True)
class Scaling:
    """The parameters that count for the saliency of an axis, and the divisor of their sum."""

    linked: tuple[Linked, ...]
    divisor: dict[str, float]
    """By axis."""


def published_scaling(linked: Iterable[Linked], kinds: Mapping[str, str], blocks: int) -> Scaling:
    """Return the scaling of the released code, by which units of all kinds are ranked together.

    All parameters count, but for heads only the outputs of layers (q, k and v). kinds: axis name to its kind. blocks:
    number of blocks of the model.
    """
    counted = (one for one in linked if kinds[one.axis] != "heads" or one.dim == 0)
    divisor = {axis: max(1.0, float(blocks)) if kind == "embed" else DIVISORS.get(kind, 1.0)
               for axis, kind in kinds.items()}  # fmt: skip
    return Scaling(tuple(counted), divisor)


def gate_scaling(linked: Iterable[Linked], kinds: Mapping[str, str]) -> Scaling:
    """Return the scaling in which the sum of a unit is the derivative of the loss by a gate on the unit.

    For heads, hidden units and channels of the embedding the weights that read the unit count, for queries, keys and
    values both layers of the product, each for one half. kinds: axis name to its kind.
    """
    counted = (
        one for one in linked if kinds[one.axis] in {"qk", "v"} or (one.dim == 1 and one.parameter.endswith("weight"))
    )
    return Scaling(tuple(counted), {axis: 2.0 if kind in {"qk", "v"} else 1.0 for axis, kind in kinds.items()})


def moved(linked: Iterable[Linked], device: torch.device) -> list[Linked]:
    """Return the same occurrences with their indices on a device."""
    return [replace(one, index=one.index.to(device)) for one in linked]


def unit_saliency(
    linked: Sequence[Linked], parameters: Mapping[str, nn.Parameter], divisor: Mapping[str, float]
) -> Scores:
    """Return `(sum of w * dL/dw over the parameters of the unit / divisor)^2` of every unit.

    Gradients are those of the last backward pass; a parameter without one counts as zero. Sums in float64 that are not
    finite count as zero.
    """
    sums: Scores = {}
    by_parameter: dict[str, list[Linked]] = {}
    for one in linked:
        by_parameter.setdefault(one.parameter, []).append(one)
    with torch.no_grad():
        for name, here in by_parameter.items():
            weight = parameters[name]
            gradient = weight.grad if weight.grad is not None else torch.zeros_like(weight)
            product = weight.detach().double() * gradient.double()
            for one in here:
                others = [dim for dim in range(product.ndim) if dim != one.dim]
                along = product.sum(dim=others) if others else product
                present = one.index >= 0
                total = sums.setdefault(one.axis, torch.zeros(one.size, dtype=torch.float64, device=weight.device))
                total.index_add_(0, one.index[present], along[present])
    squares = {axis: (total / divisor[axis]).square() for axis, total in sums.items()}
    return {axis: torch.where(square.isfinite(), square, 0.0) for axis, square in squares.items()}


class RunningSaliency:
    """Averages saliencies over mini-batches, and smooths the averages from one pruning step to the next."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.total: Scores = {}
        """Sum over the mini-batches since the last pruning step."""
        self.count = 0
        self.smoothed: Scores = {}

    def add(self, saliency: Mapping[str, Tensor]) -> None:
        """Add the saliencies of one mini-batch."""
        for axis, values in saliency.items():
            self.total[axis] = self.total[axis] + values if axis in self.total else values.clone()
        self.count += 1

    def update(self) -> Scores:
        """Return `momentum * old + (1 - momentum) * average`, which starts at zero, and begin a new average."""
        for axis, total in self.total.items():
            old = self.smoothed.get(axis, torch.zeros_like(total))
            self.smoothed[axis] = self.momentum * old + (1 - self.momentum) * total / max(1, self.count)
        self.total, self.count = {}, 0
        return dict(self.smoothed)

    def reset(self) -> None:
        """Set the smoothed saliencies to zero."""
        self.smoothed = {}
