"""Reordering of a model's channels for an N:M mask. The model computes the same."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vitslim.graph.axes import Prim, Prod
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Progress
from vitslim.sparsity import Pattern
from vitslim.stages.prune.two_four.permutation import efficacy, find_permutation


@dataclass(frozen=True)
class Reordered:
    """An axis with a new order of its channels."""

    axis: str
    efficacy: float
    """Fraction of the magnitude that the pattern loses against unstructured pruning that the order restores."""


def permute_channels(
    graph: ModelGraph, weights: Collection[str], kinds: Collection[str], pattern: Pattern, progress: Progress
) -> tuple[ModelGraph, tuple[Reordered, ...]]:
    """Return an equivalent graph in which masks of these weights keep more magnitude, and its reordered axes.

    weights: names of the weights to mask. kinds: kinds of the axes to reorder, such as `mlp`.
    """
    axes = [axis.name for axis in graph.axes.prunable if axis.kind in kinds]
    found = [(axis, _readers(graph, axis, weights, pattern.span)) for axis in axes]
    matrices = {name: torch.cat(readers) for name, readers in found if readers}
    orders = {
        name: find_permutation(matrix, pattern)
        for name, matrix in progress.track(list(matrices.items()), "two-four: reordering channels")
    }
    reordered = tuple(Reordered(name, efficacy(matrices[name], order, pattern)) for name, order in orders.items())
    return slice_axes(graph, {name: order.tolist() for name, order in orders.items()}), reordered


def _readers(graph: ModelGraph, axis: str, weights: Collection[str], span: int) -> list[Tensor]:
    """Return the weights whose reduction dimension is an axis, as matrices (rows, axis)."""
    return [matrix for name in weights for matrix in _matrix(graph, name, graph.axes.prim(axis), span)]


def _matrix(graph: ModelGraph, name: str, axis: Prim, span: int) -> Iterator[Tensor]:
    """Yield the weight as a matrix with the axis last.

    Yields nothing when the axis is not the fastest factor of the reduction dimension or its length is not a multiple of
    the span of a group.
    """
    terms = graph.axes.parameter_terms(name)
    reduction = terms[1] if len(terms) == 2 else None
    last = reduction.factors[-1] if isinstance(reduction, Prod) else reduction
    if last is axis and axis.size % span == 0:
        yield graph.parameters()[name].detach().reshape(-1, axis.size)
