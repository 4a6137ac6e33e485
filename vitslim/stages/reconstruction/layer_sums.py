"""Sums over the input rows of a layer. All sums over calibration images of layer-wise reconstruction are taken here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.nn import functional

from vitslim.graph.nodes import argument, is_op
from vitslim.stages.reconstruction.curvature import effective_rows, weighted_gram
from vitslim.stages.reconstruction.sensitivity import row_weights
from vitslim.training.engine.collectives import of_first_rank, sum_over_ranks

CONVOLUTION = {"stride": (3, 1), "padding": (4, 0), "dilation": (5, 1)}
"""Position and default of the arguments of a convolution."""
ELEMENTS_AT_ONCE = 2**24
"""Elements of the unfolded input of a convolution that are in memory at once."""


class OriginalSums:
    """Sums over the rows of a layer of the original graph, collected batch by batch."""

    def __init__(self, images: int) -> None:
        """`images`: the number of all images."""
        self._images = images
        # Taken at once for all rows: small tensors that stay, between large ones that go, fragment the heap.
        self._norms: Tensor | None = None
        self._weighted = torch.zeros((), dtype=torch.float64)
        self._sum = torch.zeros((), dtype=torch.float64)
        self._count = 0
        self._norms_of_all: Tensor | None = None
        """Sum of the norms of all ranks, after `merge`."""
        self.gradients: Tensor | None = None
        """Gram matrix of the output gradients, float64 (out, out); None unless `add_gradients` was called."""

    def add(self, images: int, rows: Iterable[Tensor], norms: Tensor | None) -> None:
        """Add the input rows of some images, float (n, in) each, and the norms of all their output gradients, float64
        (rows,), if known."""
        if norms is not None:
            if self._norms is None:
                self._norms = norms.new_empty(self._images * (len(norms) // images))
            self._norms[self._count : self._count + len(norms)] = norms
        start = 0
        for part in rows:
            self._count, self._sum = self._count + len(part), self._sum + part.sum(dim=0).double()
            if norms is not None:
                here = norms[start : start + len(part)]
                peak = here.amax().clamp(min=torch.finfo(torch.float64).tiny)
                self._weighted = self._weighted + ((here / peak).to(part.dtype) @ part).double() * peak
                start += len(part)

    def add_gradients(self, rows: Tensor) -> None:
        """Add scaled output gradients, float (n, out)."""
        gram = weighted_gram(rows, torch.ones(len(rows)))
        self.gradients = gram if self.gradients is None else self.gradients + gram

    def merge(self) -> None:
        """Add the rows of the other ranks, which each have some, to all sums; all ranks call it."""
        if self._norms is not None:
            self._norms_of_all = sum_over_ranks(self._norms.sum())
        self._weighted, self._sum = sum_over_ranks(self._weighted), sum_over_ranks(self._sum)
        self._count = int(sum_over_ranks(torch.tensor(self._count)))
        if self.gradients is not None:
            self.gradients = sum_over_ranks(self.gradients)

    def weights(self) -> Tensor | None:
        """Return the weight of each row of this rank, float32 (rows,); None if all rows have equal weight.

        The mean over the rows of all ranks is 1.
        """
        if self._norms is None:
            return None
        return row_weights(self._norms, None if self._norms_of_all is None else self._norms_of_all / self._count)

    def mean(self) -> Tensor:
        """Return the weighted mean of the inputs: float32 (in,)."""
        total = torch.zeros(()) if self._norms is None else self._norms.sum()
        total = total if self._norms_of_all is None else self._norms_of_all
        return (self._weighted / total if total > 0 else self._sum / self._count).float()


class CompressedSums:
    """Sums over the rows of a layer of the compressed graph, collected batch by batch."""

    def __init__(self, centered: bool, shared: bool = False) -> None:
        """`centered`: whether the gram matrix is that of the rows minus their weighted mean.

        `shared`: whether every rank has some of the rows, and `merge` is called after the last ones.
        """
        self._centered, self._shared = centered, shared
        self._merged: tuple[Tensor, float] | None = None
        """Sum of the weights and effective row count of all ranks."""
        self._origin: Tensor | None = None
        self._gram = torch.zeros((), dtype=torch.float64)
        self._weighted = torch.zeros((), dtype=torch.float64)
        self._weights: list[Tensor] = []

    def add(self, rows: Iterable[Tensor], weights: Tensor | None) -> None:
        """Add input rows, float (n, in) each, and the weights of all of them, float (rows,); None: all are 1."""
        start = 0
        for part in rows:
            here = torch.ones(len(part)) if weights is None else weights[start : start + len(part)]
            start += len(part)
            if self._origin is None:
                # About a mean of few rows instead of zero, so that the correction in `gram` is small.
                origin = part.mean(dim=0) if self._centered else torch.zeros_like(part[0])
                self._origin = of_first_rank(origin) if self._shared else origin
            moved = part - self._origin if self._centered else part
            self._weighted = self._weighted + (here @ moved).double()
            self._gram = self._gram + weighted_gram(moved, here)
            self._weights.append(here)

    def merge(self) -> None:
        """Add the rows of the other ranks to all sums; all ranks call it."""
        weights = torch.cat(self._weights).double()
        totals = sum_over_ranks(torch.stack([weights.sum(), weights.square().sum()]))
        self._gram, self._weighted = sum_over_ranks(self._gram), sum_over_ranks(self._weighted)
        self._merged = totals[0], float(totals[0].square() / totals[1])

    def mean(self) -> Tensor:
        """Return the weighted mean: float32 (in,)."""
        return (self._offset() + self._first_origin()).float()

    def gram(self) -> tuple[Tensor, float]:
        """Return the weighted sum of y y^T, float64 (in, in), and the effective row count."""
        weights = torch.cat(self._weights)
        total, rows = self._merged or (weights.sum().double(), effective_rows(weights))
        offset = self._offset() if self._centered else torch.zeros_like(self._first_origin())
        return self._gram - total * torch.outer(offset, offset), rows

    def _offset(self) -> Tensor:
        total = self._merged[0] if self._merged else torch.cat(self._weights).double().sum()
        return self._weighted / total.clamp(min=torch.finfo(torch.float64).tiny)

    def _first_origin(self) -> Tensor:
        return torch.zeros((), dtype=torch.float64) if self._origin is None else self._origin.double()


def layer_rows(layer: Node, x: Tensor, weight: Tensor) -> Iterator[Tensor]:
    """Yield the input rows of a layer, float (n, in), one for each output position, in order.

    x: its input activation. weight: that of the layer. Windows of convolutions are unfolded a few images at a time.
    """
    if is_op(layer, torch.ops.aten.linear.default):
        yield x.flatten(end_dim=-2)
        return
    kernel = tuple(weight.shape[2:])
    found: Any = {name: argument(layer, index, name, default) for name, (index, default) in CONVOLUTION.items()}
    size = max(1, ELEMENTS_AT_ONCE * len(x) // (x.numel() * torch.Size(kernel).numel()))
    for part in torch.split(x, size):
        yield functional.unfold(part, kernel, **found).transpose(1, 2).flatten(end_dim=-2)
