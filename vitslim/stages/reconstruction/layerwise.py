"""Layer-wise reconstruction.

One pass over the calibration images measures the original graph: the sensitivity of its outputs to each row of a layer,
and the mean input of each layer. Then the compressed graph runs over the same images, layer by layer: each layer is
solved on the activations that the already compressed layers before it produce, and its bias restores the mean of the
original outputs. The targets of a layer are its own outputs on these activations: fitting the outputs of the original
graph overfits the classes of the calibration images.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.memory import images_at_once, images_held
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument, parameter_of, tensor_of
from vitslim.progress import Progress
from vitslim.ranks import rank, rank_count, rows_of_rank
from vitslim.stages.reconstruction.curvature import Curvature
from vitslim.stages.reconstruction.layer_sums import CompressedSums, OriginalSums, layer_rows
from vitslim.stages.reconstruction.sensitivity import BATCH, Sensitivity, scaled_gradients
from vitslim.training.forms.taps import with_taps
from vitslim.training.tasks import task_for

IMAGES_AT_ONCE = 8
"""Images of a part of a pass over the compressed graph: their activations fit into the cache of a processor."""

Solve = Callable[[str, Tensor, Curvature], Tensor]
"""New weight (out, in) of a layer, from its name, its current weight (out, in), and the cost of a change."""
Change = Callable[[Tensor], Tensor]
Measure = Callable[[Tensor, int, Mapping[str, OriginalSums]], None]
"""Adds the images of this rank to the sums, given the number of images of the whole batch."""
_Segment = tuple[list[Node], Node]
"""A layer, and the nodes to run since the layer before it."""


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
    weight and there is no backward pass."""
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
        convolutions must not be named. A weight that several layers share is solved for the first of them. The ranks
        share the images, unless these are fewer; each solves every layer from the sums over all images.
        """
        shared = 1 < rank_count() <= len(self.images)
        batches = shared_batches(self.images, images_at_once(graph, BATCH, backward=True))
        original = self._original_sums(graph, _places(graph.module, weights), batches, shared)
        new = graph.copy()
        places = _places(new.module, weights)
        images = torch.cat([own for own, _ in batches]) if rank_count() > 1 else self.images
        parts = torch.split(images, images_at_once(graph, IMAGES_AT_ONCE))
        runs = [_Changed(new.module, self.inputs, part) for part in parts]
        with torch.no_grad():
            for nodes, layer in self.progress.track(_segments(new.module, places), self.label):
                name = places[layer]
                weight, bias = tensor_of(new.module, name), self._bias(new.module, layer, name)
                sums, row_weights = CompressedSums(bool(bias), shared), original[name].weights()
                for run, here in zip(runs, _split(row_weights, parts), strict=True):
                    run.through(nodes)
                    sums.add(layer_rows(layer, run.input_of(layer), weight), here)
                if shared:
                    sums.merge()
                result = solve(name, weight.flatten(start_dim=1), _curvature(weight, sums, original[name]))
                if bias:
                    matrix, means = weight.flatten(start_dim=1).double(), (original[name].mean(), sums.mean())
                    tensor_of(new.module, bias).add_(matrix @ means[0].double() - result.double() @ means[1].double())
                weight.copy_(result.view(weight.shape))
        return new

    def _original_sums(
        self, graph: ModelGraph, places: Mapping[Node, str], batches: Sequence[tuple[Tensor, int]], shared: bool
    ) -> Mapping[str, OriginalSums]:
        """Return the sums over the rows of each layer of the original graph, by the name of its weight.

        batches: as `shared_batches` returns them.
        """
        sums = {name: OriginalSums(sum(len(own) for own, _ in batches)) for name in places.values()}
        if places and (self.sensitive or self.biases):
            measure = self._measure_gradients(graph, places) if self.sensitive else _measure_inputs(graph, places)
            for own, whole in self.progress.track(batches, "inputs and gradients of layers"):
                measure(own, whole, sums)
            for one in sums.values() if shared else ():
                one.merge()
        return sums

    def _measure_gradients(self, graph: ModelGraph, places: Mapping[Node, str]) -> Measure:
        layers = [(name, node) for node, name in places.items()]
        sensitivity = Sensitivity(graph.module, layers, seed=0, draws=self.draws, task=task_for(graph.source))
        nodes = dict(layers)

        def measure(batch: Tensor, whole: int, sums: Mapping[str, OriginalSums]) -> None:
            inputs, norms = dict[str, Tensor](), dict[str, Tensor]()
            for name, x, found, gradients in sensitivity(batch, whole):
                inputs[name], norms[name] = x, norms.get(name, 0) + found
                if name in self.joint:
                    sums[name].add_gradients(scaled_gradients(gradients, found))
            for name, x in inputs.items():
                rows = layer_rows(nodes[name], x, tensor_of(graph.module, name))
                sums[name].add(len(batch), rows, norms[name])

        return measure

    def _bias(self, module: GraphModule, layer: Node, weight: str) -> str:
        """Return the name of the bias when it is a parameter of this layer alone, else an empty string."""
        bias = argument(layer, 2)
        alone = bias is not None and len(bias.users) == 1 and len(layer_nodes(module)[weight]) == 1
        return parameter_of(bias) if self.biases and alone else ""


def solvable_images(graph: ModelGraph, weights: Collection[str], most: int) -> int:
    """Return the largest number of images up to `most` on which these layers of a graph can be solved in memory."""
    return images_held(graph, _places(graph.module, weights), most)


class _Changed(Interpreter):
    """Runs a graph whose layers have changed input activations on some images, a few nodes at a time."""

    def __init__(self, module: GraphModule, inputs: Mapping[str, Change], images: Tensor) -> None:
        super().__init__(module)
        layers = layer_nodes(module)
        self._inputs = {node: change for weight, change in inputs.items() for node in layers[weight]}
        self.args_iter = iter((images,))

    def through(self, nodes: Sequence[Node]) -> None:
        """Run nodes and free the values that no later node reads."""
        for node in nodes:
            self.env[node] = self.run_node(node)
            for done in self.user_to_last_uses.get(node, []):
                self.env.pop(done, None)

    def input_of(self, layer: Node) -> Tensor:
        """Return the input activation of a layer, changed."""
        x: Tensor = self.env[argument(layer, 0)]
        return self._inputs[layer](x) if layer in self._inputs else x

    def fetch_args_kwargs_from_env(self, n: Node) -> tuple[Any, Any]:
        """Return the arguments of a node, the input activation of a layer changed."""
        args, kwargs = super().fetch_args_kwargs_from_env(n)
        return ((self._inputs[n](args[0]), *args[1:]) if n in self._inputs else args), kwargs


def shared_batches(images: Tensor, size: int) -> list[tuple[Tensor, int]]:
    """Return this rank's images of each batch of at most `size` images, and the number of images of the batch.

    With more ranks than that, a batch has an image for each rank, and a smaller last one is added to the batch before.
    If there are fewer images than ranks, every rank has all.
    """
    ranks = rank_count()
    batches = list(torch.split(images, max(size, ranks)))
    if len(batches) > 1 and len(batches[-1]) < ranks:
        batches[-2:] = [torch.cat(batches[-2:])]
    return [(batch[rows_of_rank(len(batch), rank(), ranks)] if ranks > 1 else batch, len(batch)) for batch in batches]


def _measure_inputs(graph: ModelGraph, places: Mapping[Node, str]) -> Measure:
    tapped = with_taps(graph.module, [argument(node, 0) for node in places])

    def measure(batch: Tensor, _: int, sums: Mapping[str, OriginalSums]) -> None:
        with torch.no_grad():
            _, inputs = tapped(batch)
            for (node, name), x in zip(places.items(), inputs, strict=True):
                sums[name].add(len(batch), layer_rows(node, x, tensor_of(graph.module, name)), None)

    return measure


def _places(module: GraphModule, weights: Collection[str]) -> dict[Node, str]:
    """Return the first layer that multiplies with each of these weights, in the order of the model."""
    return {nodes[0]: weight for weight, nodes in layer_nodes(module).items() if weight in weights}


def _segments(module: GraphModule, places: Collection[Node]) -> list[_Segment]:
    """Return each layer with the nodes before it that run after the layer before it."""
    found, nodes = list[_Segment](), list[Node]()
    for node in module.graph.nodes:
        if node in places:
            found.append((nodes, node))
            nodes = []
        nodes.append(node)
    return found


def _split(row_weights: Tensor | None, parts: Sequence[Tensor]) -> Iterator[Tensor | None]:
    """Yield the weights of the rows of each part of the images, which all have equally many rows an image."""
    start, images = 0, sum(map(len, parts))
    for part in parts:
        stop = start + len(part)
        if row_weights is None:
            yield None
        else:
            rows = len(row_weights) // images
            yield row_weights[start * rows : stop * rows]
        start = stop


def _curvature(weight: Tensor, sums: CompressedSums, original: OriginalSums) -> Curvature:
    gram, rows = sums.gram()
    if original.gradients is None:
        return Curvature.of_rows(gram, len(weight), rows)
    return Curvature.of(gram, original.gradients, rows)
