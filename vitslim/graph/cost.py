"""What a graph costs: parameters, MACs, BOPs and bytes, by the conventions of the specs (section 3.1)."""

from __future__ import annotations

from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch_graph import sketch
from vitslim.results import Cost


def cost(graph: ModelGraph) -> Cost:
    """Cost for one image. MACs include both attention products, convolutions and the products of token squeezing."""
    return sketch(graph).cost()
