"""Shapes of every tensor in a graph, without computing any."""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node

BATCH = 10007
"""Stands for the batch: a large prime, so that no other size and no product of other sizes equals it."""


def tensor_shapes(module: GraphModule, image: tuple[int, int, int]) -> dict[Node, Any]:
    """Node to shape, or to a list of shapes for a node that gives several tensors; the batch appears as `BATCH`."""
    recorder = _Recorder(module)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
        recorder.run(torch.empty(BATCH, *image))
    return recorder.shapes


class _Recorder(Interpreter):
    """Runs a graph and notes the shape of every result."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.shapes[n] = tuple(result.shape)
        elif isinstance(result, (tuple, list)) and n.op == "call_function":
            self.shapes[n] = [tuple(r.shape) if isinstance(r, torch.Tensor) else () for r in result]
        return result
