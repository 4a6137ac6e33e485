"""Share of a model that structural pruning can reach."""

from __future__ import annotations

from vitslim.graph.model_graph import ModelGraph


def prunable_share(graph: ModelGraph) -> float:
    """Share of the parameters, 0 to 1, in tensors with at least one prunable dimension."""
    reached = {site.parameter for axis in graph.axes.prunable for site in axis.sites}
    counts = {name: weight.numel() for name, weight in graph.parameters().items()}
    return sum(count for name, count in counts.items() if name in reached) / max(1, sum(counts.values()))
