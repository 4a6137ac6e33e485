"""Re-estimation of batch norms: their running statistics, as a model with other weights needs them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional

from vitslim.graph.nodes import argument, is_op, parameter_of, tensor_of

aten = torch.ops.aten


def batch_norms(module: GraphModule) -> list[Node]:
    """Return the batch norms of a graph."""
    return [node for node in module.graph.nodes if is_op(node, aten.batch_norm.default)]


def reestimate_batch_norms(module: GraphModule, batches: Iterable[Tensor]) -> int:
    """Set the running means and variances of all batch norms to the averages over batches, in place.

    batches: images (n, C, H, W) each, n above 1. While they are passed, every batch norm normalizes by the statistics
    of its batch. Weights do not change. Returns the number of batches.
    """
    estimator, count = _Estimator(module), 0
    with torch.no_grad():
        for images in batches:
            estimator.run(images)
            count += 1
        for node, (mean, variance) in estimator.sums.items():
            tensor_of(module, parameter_of(argument(node, 3))).copy_(mean / count)
            tensor_of(module, parameter_of(argument(node, 4))).copy_(variance / count)
    return count


class _Estimator(Interpreter):
    """Runs a graph whose batch norms use the statistics of the batch, and adds these up."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.sums: dict[Node, tuple[Tensor, Tensor]] = {}
        """Sum of means and sum of unbiased variances, (channels,) each."""

    def run_node(self, n: Node) -> Any:
        """Compute a node; a batch norm without its running statistics."""
        if not is_op(n, aten.batch_norm.default):
            return super().run_node(n)
        (x, weight, bias, *_), _ = self.fetch_args_kwargs_from_env(n)
        dims = [dim for dim in range(x.dim()) if dim != 1]
        mean, variance = x.mean(dim=dims).double(), x.var(dim=dims, unbiased=True).double()
        earlier = self.sums.get(n, (torch.zeros_like(mean), torch.zeros_like(variance)))
        self.sums[n] = earlier[0] + mean, earlier[1] + variance
        return functional.batch_norm(x, None, None, weight, bias, training=True, eps=argument(n, 7))
