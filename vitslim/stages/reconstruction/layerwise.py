"""Layer-wise reconstruction.

The original and the compressed graph run side by side over all calibration images. Each layer is solved on the
activations that the already compressed layers before it produce; its bias restores the mean of the original outputs.
Errors are weighted by their effect on the outputs of the model. The targets of a layer are its own outputs on these
activations: fitting the outputs of the original graph overfits the classes of the calibration images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional

from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.memory import images_at_once
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, is_op, parameter_of, tensor_of
from vitslim.progress import Progress
from vitslim.stages.reconstruction.curvature import Curvature, effective_rows, weighted_gram
from vitslim.stages.reconstruction.sensitivity import BATCH, Sensitivity, row_weights
from vitslim.training.tasks import task_for

aten = torch.ops.aten
CONVOLUTION = {"stride": (3, 1), "padding": (4, 0), "dilation": (5, 1)}
"""Position and default of the arguments of a convolution."""
COPIES = 2
"""Number of graphs that hold their activations at the same time."""
ELEMENTS_AT_ONCE = 2**24
"""Elements of the unfolded input of a convolution that are in memory at once."""

Solve = Callable[[str, Tensor, Curvature], Tensor]
"""New weight (out, in) of a layer, from its name, its current weight (out, in), and the cost of a change."""
Change = Callable[[Tensor], Tensor]
_Sensitivities = tuple[Tensor, Tensor | None]
"""Weight of each row of a layer, float (rows,), of mean 1, and the gram matrix of its output gradients, float64
(out, out), for a layer in `joint`."""


@dataclass(frozen=True)
class LayerSolver:
    """Solves layers of a graph on calibration images."""

    images: Tensor
    """Calibration images: float (n, C, H, W), all in memory at once."""
    progress: Progress
    label: str
    inputs: Mapping[str, Change] = field(default_factory=dict)
    """Functions that quantize the input activations of layers in the compressed graph, by the name of the weight."""
    sensitive: bool = True
    """Whether rows are weighted by the effect of their outputs on those of the model. Otherwise all rows have equal
    weight and
    there is no backward pass."""
    joint: Collection[str] = ()
    """Names of the layers whose curvature covers their outputs too. The outputs of other layers are independent. The
    output factors of all these layers are in memory at once."""
    draws: int = 0
    """Number of answers sampled from the model for each image, such as classes, whose log-likelihoods are
    differentiated. 0: differentiate one random combination of the outputs instead."""
    biases: bool = True
    """Whether biases are corrected so that the weighted mean of every output stays the same."""

    def __call__(self, graph: ModelGraph, weights: Collection[str], solve: Solve) -> ModelGraph:
        """Return a copy of a graph in which the named layers have the weights that `solve` returns.

        Layers are visited in the order of the model. Convolutions are matrices over their unfolded inputs; grouped
        convolutions must not be named. A weight that several layers share is solved for the first of them.
        """
        new = graph.copy()
        before, after = Interpreter(graph.module), _Changed(new.module, self.inputs)
        before.args_iter, after.args_iter = iter((self.images,)), iter((self.images,))
        twins = dict(zip(graph.module.graph.nodes, new.module.graph.nodes, strict=True))
        places = {nodes[0]: weight for weight, nodes in layer_nodes(graph.module).items() if weight in weights}
        found = self._sensitivities(graph, [(weight, node) for node, weight in places.items()])
        with torch.no_grad():
            for node, twin in self.progress.track(list(twins.items()), self.label):
                if node in places:
                    inputs = before.env[argument(node, 0)], after.input_of(twin)
                    self._solve_one(new.module, twin, places[node], inputs, found.get(places[node]), solve)
                _step(before, node)
                _step(after, twin)
        return new

    def _sensitivities(self, graph: ModelGraph, layers: Sequence[tuple[str, Node]]) -> Mapping[str, _Sensitivities]:
        """Return the sensitivities of each layer by the name of its weight; empty when all rows have equal weight."""
        if not self.sensitive or not layers:
            return {}
        sensitivity = Sensitivity(graph.module, layers, seed=0, draws=self.draws, task=task_for(graph.source))
        norms: dict[str, list[Tensor]] = {name: [] for name, _ in layers}
        outputs: dict[str, Tensor] = {}
        batches = torch.split(self.images, images_at_once(graph, BATCH, backward=True))
        for batch in self.progress.track(batches, "gradients of layer outputs"):
            here: dict[str, Tensor] = {}
            for name, found, rows in sensitivity(batch):
                here[name] = here.get(name, 0) + found
                if name in self.joint:
                    outputs[name] = outputs.get(name, 0) + weighted_gram(rows, torch.ones(len(rows)))
            for name, total in here.items():
                norms[name].append(total)
        return {name: (row_weights(torch.cat(parts)), outputs.get(name)) for name, parts in norms.items()}

    def _solve_one(
        self,
        module: GraphModule,
        layer: Node,
        name: str,
        inputs: tuple[Tensor, Tensor],
        sensitivities: _Sensitivities | None,
        solve: Solve,
    ) -> None:
        weight, bias = tensor_of(module, name), self._bias(module, layer, name)
        weights, outputs = sensitivities or (None, None)
        rows = [_Rows(layer, x, tuple(weight.shape[2:]), weights) for x in inputs]
        means = [one.mean() for one in rows] if bias else [torch.zeros(weight[0].numel())] * COPIES
        matrix = weight.flatten(start_dim=1)
        gram, count = rows[1].gram(means[1])
        curvature = (
            Curvature.of_rows(gram, len(weight), count) if outputs is None else Curvature.of(gram, outputs, count)
        )
        result = solve(name, matrix, curvature)
        if bias:
            shift = matrix.double() @ means[0].double() - result.double() @ means[1].double()
            tensor_of(module, bias).add_(shift)
        weight.copy_(result.view(weight.shape))  # last: `matrix` is a view of it

    def _bias(self, module: GraphModule, layer: Node, weight: str) -> str:
        """Return the name of the bias when it is a parameter of this layer alone, else an empty string."""
        bias = argument(layer, 2)
        alone = bias is not None and len(bias.users) == 1 and len(layer_nodes(module)[weight]) == 1
        return parameter_of(bias) if self.biases and alone else ""


class _Changed(Interpreter):
    """Runs a graph whose layers have changed input activations."""

    def __init__(self, module: GraphModule, inputs: Mapping[str, Change]) -> None:
        super().__init__(module)
        layers = layer_nodes(module)
        self._inputs = {node: change for weight, change in inputs.items() for node in layers[weight]}

    def input_of(self, layer: Node) -> Tensor:
        """Return the input activation of a layer, changed."""
        x: Tensor = self.env[argument(layer, 0)]
        return self._inputs[layer](x) if layer in self._inputs else x

    def fetch_args_kwargs_from_env(self, n: Node) -> tuple[Any, Any]:
        """Return the arguments of a node, the input activation of a layer changed."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return ((self._inputs[n](args[0]), *args[1:]) if n in self._inputs else args), kwargs


class _Rows:
    """Iterates over the input rows of a layer, float (n, in), one for each output position, and their weights (n,)."""

    def __init__(self, layer: Node, x: Tensor, kernel: tuple[int, ...], weights: Tensor | None) -> None:
        self._layer, self._x, self._kernel, self._weights = layer, x, kernel, weights

    def mean(self) -> Tensor:
        """Return the weighted mean: float (in,)."""
        total, count = torch.zeros((), dtype=torch.float64), 0
        for rows, weights in self:
            total, count = total + (weights @ rows).double(), count + len(rows)
        return (total / count).float()

    def gram(self, mean: Tensor) -> tuple[Tensor, float]:
        """Return the weighted sum of y y^T over rows y minus `mean`, float64 (in, in), and the effective row count."""
        total, parts = torch.zeros((), dtype=torch.float64), list[Tensor]()
        for rows, weights in self:
            total = total + weighted_gram(rows - mean, weights)
            parts.append(weights)
        return total, effective_rows(torch.cat(parts))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        windows = 1 if is_op(self._layer, aten.linear.default) else torch.Size(self._kernel).numel()
        size = max(1, ELEMENTS_AT_ONCE * len(self._x) // (self._x.numel() * windows))
        start = 0
        for part in torch.split(self._x, size):
            rows = _rows(self._layer, part, self._kernel)
            stop = start + len(rows)
            yield rows, torch.ones(len(rows)) if self._weights is None else self._weights[start:stop]
            start = stop


def _step(interpreter: Interpreter, node: Node) -> None:
    """Run one node and free the values that no later node reads."""
    if node.op == "output":
        return
    interpreter.env[node] = interpreter.run_node(node)
    for done in interpreter.user_to_last_uses.get(node, []):
        interpreter.env.pop(done, None)


def _rows(layer: Node, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
    if is_op(layer, aten.linear.default):
        return x.flatten(end_dim=-2)
    found: Any = {name: argument(layer, index, name, default) for name, (index, default) in CONVOLUTION.items()}
    return functional.unfold(x, kernel, **found).transpose(1, 2).flatten(end_dim=-2)
