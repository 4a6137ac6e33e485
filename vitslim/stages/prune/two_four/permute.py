"""Which axes of a model may be reordered for a mask, and by which weights (GPUSQ, section 3)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vitslim.graph.axes import Prim, Prod
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Progress
from vitslim.stages.prune.two_four.patterns import TWO_OF_FOUR
from vitslim.stages.prune.two_four.permutation import efficacy, find_permutation


@dataclass(frozen=True)
class Reordered:
    """One axis that was put into another order."""

    axis: str
    efficacy: float
    """Share of the magnitude that 2:4 loses against unstructured pruning which the order won back."""


def permute_channels(
    graph: ModelGraph, weights: Collection[str], kinds: Collection[str], progress: Progress
) -> tuple[ModelGraph, tuple[Reordered, ...]]:
    """A graph that computes the same, its channels in an order in which 2:4 masks of these weights keep more."""
    found = [(axis.name, _readers(graph, axis.name, weights)) for axis in graph.axes.prunable if axis.kind in kinds]
    matrices = {name: torch.cat(readers) for name, readers in found if readers}
    orders = {
        name: find_permutation(matrix) for name, matrix in progress.track(list(matrices.items()), "two-four: channels")
    }
    reordered = tuple(Reordered(name, efficacy(matrices[name], order)) for name, order in orders.items())
    return slice_axes(graph, {name: order.tolist() for name, order in orders.items()}), reordered


def _readers(graph: ModelGraph, axis: str, weights: Collection[str]) -> list[Tensor]:
    """Weights whose reduction runs over an axis, as matrices (rows, axis)."""
    return [matrix for name in weights for matrix in _matrix(graph, name, graph.axes.prim(axis))]


def _matrix(graph: ModelGraph, name: str, axis: Prim) -> Iterator[Tensor]:
    """The weight with the axis last; none where the axis is not the fastest of the reduction or runs are torn apart."""
    terms = graph.axes.parameter_terms(name)
    reduction = terms[1] if len(terms) == 2 else None
    last = reduction.factors[-1] if isinstance(reduction, Prod) else reduction
    if last is axis and axis.size % TWO_OF_FOUR.group == 0:
        yield graph.parameters()[name].detach().reshape(-1, axis.size)
