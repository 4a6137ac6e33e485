"""Run a graph as an accelerator computes it, and collect the counts of all images."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule

from vitslim.errors import StageError
from vitslim.graph.anatomy import find_anatomy
from vitslim.graph.approximate.fact.layer import FactState
from vitslim.graph.approximate.sites import approximation_obstacle, find_sites
from vitslim.graph.approximate.spatten.layer import SpattenState
from vitslim.graph.approximate.training import with_approximation
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.accelerators import Accelerator
from vitslim.results.accelerator_counts import Counts, FactCounts, SpattenCounts, joined


@dataclass(frozen=True)
class Approximation:
    """A graph as an accelerator computes it."""

    module: GraphModule
    """Maps images (B, C, H, W) to logits (B, classes) and the state after the last layer."""
    blocks: tuple[str, ...]
    """Names of the blocks with attention, in order."""
    prefix: int
    """Class token and registers."""
    tokens: tuple[int, ...]
    """Tokens that arrive at each attention of the graph, without pruning by the accelerator."""

    def __call__(self, images: Tensor) -> tuple[Tensor, Counts, tuple[Tensor, ...]]:
        """Return logits, the counts of each image, and the important tokens after each layer, bool (B, N)."""
        with torch.no_grad():
            logits, state = self.module(images)
        return logits, counts_of(state), state.left


def approximate(graph: ModelGraph, settings: Accelerator, deployed: ModelGraph | None = None) -> Approximation:
    """Return a graph as an accelerator computes it; it shares all tensors with the graph.

    deployed: the same model in the form of its file, such as without unused tokens; it is computed instead. Raises
    StageError for a model that the accelerator cannot compute.
    """
    reason = approximation_obstacle(graph, settings)
    if reason:
        message = f"sim:{settings.name} cannot compute {graph.source.timm}: {reason}"
        raise StageError(message, "remove the backend, or choose another model")
    graph = deployed or graph
    anatomy = find_anatomy(graph)
    sites = find_sites(anatomy)
    tokens = tuple(anatomy.shapes[site.attention.k][2] for site in sites)
    module = with_approximation(graph.module, graph, settings, counted=True).eval()
    return Approximation(module, tuple(site.block.name for site in sites), anatomy.prefix_tokens, tokens)


def run_approximation(found: Approximation, batches: Iterable[Tensor]) -> tuple[Tensor, Counts]:
    """Return the logits, float32 (n, classes), and the counts of all images."""
    logits, counts = [], []
    for images in batches:
        one, counted, _ = found(images)
        logits.append(one.float())
        counts.append(counted)
    return torch.cat(logits), joined(counts)


def counts_of(state: Any) -> Counts:
    """Return the counts of the final state of an accelerator as arrays."""
    match state:
        case SpattenState():
            return _spatten_counts(state)
        case FactState():
            stacked = torch.stack(state.counts, dim=1).cpu().numpy()
            entries, columns, rows, high = (np.ascontiguousarray(stacked[:, :, i]) for i in range(4))
            return FactCounts(entries, columns, rows, high)
    raise TypeError(f"no accelerator has a state of type {type(state).__name__}")


def _spatten_counts(state: SpattenState) -> SpattenCounts:
    heads = max(one.shape[1] for one in state.counts)
    padded = [torch.nn.functional.pad(one, (0, 0, 0, heads - one.shape[1])) for one in state.counts]
    stacked = torch.stack(padded, dim=1).cpu().numpy()
    left = torch.stack([one.sum(dim=1) for one in state.left], dim=1).cpu().numpy()
    queries, keys, values, value_rows, refetched = (np.ascontiguousarray(stacked[..., i]) for i in range(5))
    return SpattenCounts(queries, keys, values, value_rows, refetched, left)
