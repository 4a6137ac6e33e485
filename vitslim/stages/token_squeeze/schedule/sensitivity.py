"""Loss that squeezing the tokens of a single block causes, measured on calibration images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from vitslim.errors import StageError
from vitslim.graph.anatomy import block_input, find_anatomy
from vitslim.graph.memory import images_at_once
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import graph_module, tensors_of
from vitslim.progress import Progress
from vitslim.training.forms.taps import with_taps
from vitslim.training.images import LabeledImages
from vitslim.training.tasks import task_for

Floats = npt.NDArray[np.float64]

Squeeze = Callable[[ModelGraph, Mapping[str, int]], ModelGraph]
"""Returns a new graph in which each named block keeps a number of patch tokens; the names of old nodes stay."""

FORWARD_BATCH = 32
"""Images of a forward pass; it bounds memory and changes no result."""


def measure_losses(
    graph: ModelGraph,
    kept: Mapping[str, Sequence[int]],
    squeeze: Squeeze,
    images: LabeledImages,
    progress: Progress,
) -> dict[str, tuple[float, ...]]:
    """Return the loss of each block for each number of patch tokens that it alone keeps.

    kept: block name to counts. The loss is the distance of the task from the dense outputs, for classification the mean
    KL divergence in nats. The part of the model before a block runs once: the others start from its stored activations.
    Raises StageError for predictions that are not finite.
    """
    blocks = {block.name: block for block in find_anatomy(graph).blocks if block.name in kept}
    inputs = {name: block_input(block) for name, block in blocks.items()}
    batches, logits, stored = _dense_pass(graph, list(inputs.values()), images)
    positions = {name: position for position, name in enumerate(inputs)}
    cases = [(name, count) for name in inputs for count in kept[name]]
    losses: dict[str, list[float]] = {name: [] for name in inputs}
    for name, count in progress.track(cases, "sensitivity to token squeezing"):
        rest, position = from_node(squeeze(graph, {name: count}).module.eval(), inputs[name].name), positions[name]
        with torch.no_grad():
            squeezed = torch.cat([rest(x, values[position]) for x, values in zip(batches, stored, strict=True)])
        loss = float(task_for(graph.source).soft_loss(squeezed.double(), logits.double()))
        if not np.isfinite(loss):
            raise StageError(f"the outputs with '{name}' squeezed are not finite", "check model.checkpoint")
        losses[name].append(max(0.0, loss))
    return {name: tuple(found) for name, found in losses.items()}


def _dense_pass(
    graph: ModelGraph, nodes: Sequence[Node], images: LabeledImages
) -> tuple[list[Tensor], Tensor, list[tuple[Tensor, ...]]]:
    """Return the images by batch, the logits (n, classes), and for each batch the values of some nodes."""
    tapped = with_taps(graph.module.eval(), nodes)
    batches = [batch for batch, _ in images.batches(images_at_once(graph, FORWARD_BATCH))]
    with torch.no_grad():
        found = [tapped(batch) for batch in batches]
    return batches, torch.cat([logits for logits, _ in found]), [values for _, values in found]


def from_node(module: GraphModule, name: str) -> GraphModule:
    """Return a module, with the same parameters, that computes the outputs from the images and the value of a node.

    The value replaces the node called `name` of the graph; everything that only this node needs is removed.
    """
    graph = copy.deepcopy(module.graph)
    node = next(node for node in graph.nodes if node.name == name)
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    with graph.inserting_after(last):
        value = graph.placeholder(f"{name}_value")
    node.replace_all_uses_with(value)
    graph.eliminate_dead_code()
    return graph_module(tensors_of(module), graph)
