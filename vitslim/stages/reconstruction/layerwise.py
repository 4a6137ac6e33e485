"""One layer after the other: each gets new weights for the inputs that the layers changed before it give it.

Two copies of a graph run side by side over all calibration images, the one as it was and the one that is being
changed. A layer is solved on the inputs that it has in the second; its bias gives its outputs the mean that they have
in the first. What counts is how much the logits move. (Solving for the outputs of the first as well fits the few
classes of the calibration images: on others DeiT-Tiny lost 20 points of agreement by it.)
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

aten = torch.ops.aten
CONVOLUTION = {"stride": (3, 1), "padding": (4, 0), "dilation": (5, 1)}
"""Position and default of the arguments of a convolution."""
COPIES = 2
"""Graphs that hold their tensors at once."""
NUMBERS_AT_ONCE = 2**24
"""What a convolution sums up over is written out for so many numbers at a time: windows overlap."""

Solve = Callable[[str, Tensor, Curvature], Tensor]
"""New weight (out, in) of a layer by its name, its present weight as a matrix, and what a change of it costs."""
Change = Callable[[Tensor], Tensor]
_Told = tuple[Tensor, Tensor | None]


@dataclass(frozen=True)
class LayerSolver:
    """Solves layers of a graph on calibration images."""

    images: Tensor
    """Float (n, C, H, W), all in memory at once."""
    progress: Progress
    label: str
    inputs: Mapping[str, Change] = field(default_factory=dict)
    """What the inputs of layers become in the changed copy, by the name of the weight: those that are quantized."""
    sensitive: bool = True
    """Whether outputs count by how much they move the logits; otherwise all count the same, and nothing runs
    backwards."""
    joint: Collection[str] = ()
    """Names of the layers that are to know what their outputs have in common. Where none is told, their errors have
    nothing to do with each other; what is told is in memory for all layers at once."""
    draws: int = 0
    """How many classes the model draws for an image, whose probabilities tell how much outputs move the logits; 0: one
    random combination of the logits does."""
    biases: bool = True
    """Whether biases are moved so that the mean of every output stays, its rows counting as they do."""

    def __call__(self, graph: ModelGraph, weights: Collection[str], solve: Solve) -> ModelGraph:
        """A copy of a graph in which the named layers have the weights that `solve` gives, in the order of the model.

        Convolutions are matrices over what each of their outputs sums up; those in groups must not be named. A weight
        that several layers share is solved for the first of them.
        """
        new = graph.copy()
        before, after = Interpreter(graph.module), _Changed(new.module, self.inputs)
        before.args_iter, after.args_iter = iter((self.images,)), iter((self.images,))
        twins = dict(zip(graph.module.graph.nodes, new.module.graph.nodes, strict=True))
        places = {nodes[0]: weight for weight, nodes in layer_nodes(graph.module).items() if weight in weights}
        told = self._gradients(graph, [(weight, node) for node, weight in places.items()])
        with torch.no_grad():
            for node, twin in self.progress.track(list(twins.items()), self.label):
                if node in places:
                    inputs = before.env[argument(node, 0)], after.input_of(twin)
                    self._solve_one(new.module, twin, places[node], inputs, told.get(places[node]), solve)
                _step(before, node)
                _step(after, twin)
        return new

    def _gradients(self, graph: ModelGraph, layers: Sequence[tuple[str, Node]]) -> Mapping[str, _Told]:
        """Weight to how much each row of its layer counts, float (rows,), of mean 1, and to what its outputs have in
        common, float64 (out, out), where that is asked for; empty where all rows are equal."""
        if not self.sensitive or not layers:
            return {}
        sensitivity = Sensitivity(graph.module, layers, seed=0, draws=self.draws)
        norms: dict[str, list[Tensor]] = {name: [] for name, _ in layers}
        outputs: dict[str, Tensor] = {}
        batches = torch.split(self.images, images_at_once(graph, BATCH, backward=True))
        for batch in self.progress.track(batches, "looking for what matters"):
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
        told: _Told | None,
        solve: Solve,
    ) -> None:
        weight, bias = tensor_of(module, name), self._bias(module, layer, name)
        matter, outputs = told or (None, None)
        rows = [_Rows(layer, x, tuple(weight.shape[2:]), matter) for x in inputs]
        means = [one.mean() for one in rows] if bias else [torch.zeros(weight[0].numel())] * COPIES
        matrix = weight.flatten(start_dim=1)
        gram, seen = rows[1].gram(means[1])
        curvature = Curvature.of_rows(gram, len(weight), seen) if outputs is None else Curvature.of(gram, outputs, seen)
        result = solve(name, matrix, curvature)
        if bias:
            shift = matrix.double() @ means[0].double() - result.double() @ means[1].double()
            tensor_of(module, bias).add_(shift)
        weight.copy_(result.view(weight.shape))  # last: `matrix` is a view of it

    def _bias(self, module: GraphModule, layer: Node, weight: str) -> str:
        """The bias that may be moved: a parameter of this layer alone; empty where there is none."""
        bias = argument(layer, 2)
        alone = bias is not None and len(bias.users) == 1 and len(layer_nodes(module)[weight]) == 1
        return parameter_of(bias) if self.biases and alone else ""


class _Changed(Interpreter):
    """Runs a graph whose layers see changed inputs."""

    def __init__(self, module: GraphModule, inputs: Mapping[str, Change]) -> None:
        super().__init__(module)
        layers = layer_nodes(module)
        self._inputs = {node: change for weight, change in inputs.items() for node in layers[weight]}

    def input_of(self, layer: Node) -> Tensor:
        """What a layer reads."""
        x: Tensor = self.env[argument(layer, 0)]
        return self._inputs[layer](x) if layer in self._inputs else x

    def fetch_args_kwargs_from_env(self, n: Node) -> tuple[Any, Any]:
        """Arguments of a node, the first one changed."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return ((self._inputs[n](args[0]), *args[1:]) if n in self._inputs else args), kwargs


class _Rows:
    """What each output of a layer sums up over, float (n, in), and how much each row counts; some at a time."""

    def __init__(self, layer: Node, x: Tensor, kernel: tuple[int, ...], matter: Tensor | None) -> None:
        self._layer, self._x, self._kernel, self._matter = layer, x, kernel, matter

    def mean(self) -> Tensor:
        """The weighted mean: float (in,)."""
        total, count = torch.zeros((), dtype=torch.float64), 0
        for rows, weights in self:
            total, count = total + (weights @ rows).double(), count + len(rows)
        return (total / count).float()

    def gram(self, mean: Tensor) -> tuple[Tensor, float]:
        """The weighted sum of y y^T over all rows y less `mean`, float64 (in, in), and how many rows count."""
        total, counted = torch.zeros((), dtype=torch.float64), list[Tensor]()
        for rows, weights in self:
            total = total + weighted_gram(rows - mean, weights)
            counted.append(weights)
        return total, effective_rows(torch.cat(counted))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        windows = 1 if is_op(self._layer, aten.linear.default) else torch.Size(self._kernel).numel()
        size = max(1, NUMBERS_AT_ONCE * len(self._x) // (self._x.numel() * windows))
        start = 0
        for part in torch.split(self._x, size):
            rows = _rows(self._layer, part, self._kernel)
            stop = start + len(rows)
            yield rows, torch.ones(len(rows)) if self._matter is None else self._matter[start:stop]
            start = stop


def _step(interpreter: Interpreter, node: Node) -> None:
    """Run one node and forget what no later one reads."""
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
