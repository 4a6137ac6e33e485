"""Shapes of every tensor in a graph, without computing any."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Interpreter, Node

from vitslim.graph.model_graph import ModelGraph

BATCH = 10007
"""Stands for the batch: a large prime, so that no other size and no product of other sizes equals it."""


def tensor_shapes(graph: ModelGraph) -> dict[Node, tuple[int, ...]]:
    """Node to shape for each node that gives one tensor; the batch appears as `BATCH`."""
    recorder = _Recorder(graph.module)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        recorder.run(torch.empty(BATCH, *graph.source.image))
    return recorder.shapes


class _Recorder(Interpreter):
    """Runs a graph and notes the shape of every result."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[Node, tuple[int, ...]] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n] = tuple(result.shape)
        return result
