"""One layer after the other: each gets new weights for the inputs that the layers changed before it give it.

Two copies of a graph run side by side over all calibration images, the one as it was and the one that is being
changed. A layer is solved on the inputs that it has in the second; its bias gives its outputs the mean that they have
in the first. Rows count by how much they move the logits. (Solving for the outputs of the first as well fits the few
classes of the calibration images: on others DeiT-Tiny lost 20 points of agreement by it.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional

from vitslim.graph.attention import parameter_of
from vitslim.graph.insert_fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op, tensor_of
from vitslim.progress import Progress
from vitslim.stages.sensitivity import BATCH, Sensitivity, row_weights

aten = torch.ops.aten
DAMPING = 0.01
"""Added to the diagonal of a gram matrix, as a fraction of its mean (SparseGPT, section 4; GPTQ, section 3.3)."""
CONVOLUTION = {"stride": (3, 1), "padding": (4, 0), "dilation": (5, 1)}
"""Position and default of the arguments of a convolution."""

Solve = Callable[[str, Tensor, Tensor], Tensor]
"""New weight (out, in) of a layer by its name, its present weight as a matrix, and the gram matrix of its inputs."""


def solve_layers(
    graph: ModelGraph, weights: Collection[str], images: Tensor, solve: Solve, progress: Progress, label: str
) -> ModelGraph:
    """A copy of a graph in which the named layers have the weights that `solve` gives, in the order of the model.

    images: float (n, C, H, W), all in memory at once. Biases are moved so that the mean of every output stays, its
    positions counting by how much they matter. Convolutions are matrices over what each of their outputs sums up;
    those in groups must not be named.
    """
    new = graph.copy()
    before, after = Interpreter(graph.module), Interpreter(new.module)
    before.args_iter, after.args_iter = iter((images,)), iter((images,))
    twins = dict(zip(graph.module.graph.nodes, new.module.graph.nodes, strict=True))
    places = {nodes[0]: weight for weight, nodes in layer_nodes(graph.module).items() if weight in weights}
    matter = _matter(graph.module, [(weight, node) for node, weight in places.items()], images, progress)
    with torch.no_grad():
        for node, twin in progress.track(list(twins.items()), label):
            if node in places:
                inputs = before.env[argument(node, 0)], after.env[argument(twin, 0)]
                _solve_one(new.module, twin, places[node], inputs, matter[places[node]], solve)
            _step(before, node)
            _step(after, twin)
    return new


def damped(gram: Tensor) -> Tensor:
    """A gram matrix that can be inverted, also where inputs never occur: float64 (in, in)."""
    total: Tensor = gram.double().clone()
    diagonal = total.diagonal()
    diagonal += DAMPING * diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
    return total


def _matter(
    module: GraphModule, layers: Sequence[tuple[str, Node]], images: Tensor, progress: Progress
) -> Mapping[str, Tensor]:
    """Weight to how much each row of its layer counts: float (rows,), of mean 1."""
    sensitivity = Sensitivity(module, layers, seed=0)
    found: dict[str, list[Tensor]] = {name: [] for name, _ in layers}
    for batch in progress.track(torch.split(images, BATCH), "looking for what matters"):
        for name, _, norms in sensitivity(batch):
            found[name].append(norms)
    return {name: row_weights(torch.cat(norms)) for name, norms in found.items()}


def _step(interpreter: Interpreter, node: Node) -> None:
    """Run one node and forget what no later one reads."""
    if node.op == "output":
        return
    interpreter.env[node] = interpreter.run_node(node)
    for done in interpreter.user_to_last_uses.get(node, []):
        interpreter.env.pop(done, None)


def _solve_one(
    module: GraphModule, layer: Node, name: str, inputs: tuple[Tensor, Tensor], matter: Tensor, solve: Solve
) -> None:
    weight = tensor_of(module, name)
    bias = parameter_of(argument(layer, 2))
    rows = [_rows(layer, x, tuple(weight.shape[2:])) for x in inputs]
    means = [matter @ one / len(one) if bias else torch.zeros(one.shape[1]) for one in rows]
    new = rows[1] - means[1]
    gram, matrix = (new.T @ (new * matter[:, None])).double(), weight.flatten(start_dim=1)
    result = solve(name, matrix, gram)
    if bias:
        shift = matrix.double() @ means[0].double() - result.double() @ means[1].double()
        tensor_of(module, bias).add_(shift)
    weight.copy_(result.view(weight.shape))  # last: `matrix` is a view of it


def _rows(layer: Node, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """What each output of a layer sums up over: float (n, in)."""
    if is_op(layer, aten.linear.default):
        return x.flatten(end_dim=-2)
    found: Any = {name: argument(layer, index, name, default) for name, (index, default) in CONVOLUTION.items()}
    return functional.unfold(x, kernel, **found).transpose(1, 2).flatten(end_dim=-2)
