"""Compare the integers of every layer of a file with those of the fake-quantized graph, on identical inputs.

Layers are compared one by one: end to end, a value halfway between two integers may be rounded differently, and the
difference grows from layer to layer. The comparison is on dequantized values, which are equal exactly when the integers
of one quantizer are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch.fx import Interpreter, Node

from vitslim.backends.measured.quantizers import Quantizer, find_quantizers
from vitslim.data import load_data
from vitslim.graph.edits.fake_quant import layer_nodes, layer_of, shifted_quantizer
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import is_op
from vitslim.graph.ops.fake_quant import FAKE_QUANT
from vitslim.graph.saved import load_graph
from vitslim.progress import Progress
from vitslim.recipe.schema import Data
from vitslim.workload.contents.file_contents import FileContents
from vitslim.workload.session import Floats

IMAGES = 4
RELATIVE_TOLERANCE = 1e-5
"""Far less than one scale of an 8-bit quantizer, far more than the rounding error of a float32 multiplication."""
TOLERANCE = 1e-6
"""Absolute tolerance as a fraction of the largest value; covers the constant that a file subtracts from an input."""


@dataclass(frozen=True)
class LayerDifference:
    """Fractions in [0, 1] of the integers of one layer that differ between file and graph."""

    layer: str
    activations: float | None
    """None where the file or the graph does not quantize the input activation."""
    weights: float | None
    in_file: bool = True
    """Whether the file has a layer of this name."""


def compare_layers(
    model: onnx.ModelProto, contents: FileContents, folder: Path, progress: Progress
) -> tuple[LayerDifference, ...]:
    """Compare every layer that the graph saved in `folder` quantizes, in its order, on images of handwritten digits.

    Each layer of the file gets the float input of the same layer of the graph, one image at a time. Raises InputError
    when the folder has no saved graph.
    """
    graph = load_graph(folder)
    images = load_data(Data(kind="digits", calibration=IMAGES), graph.source, seed=0).calibration
    quantizers = find_quantizers(model, contents.layers)
    comparison = _Comparison(graph, quantizers)
    for index in progress.track(range(IMAGES), "comparing integers"):
        with torch.no_grad():
            comparison.run(images[index][0].unsqueeze(0))
    return tuple(
        LayerDifference(
            layer=layer,
            activations=_mean(comparison.differing[f"{weight}:activation"]),
            weights=_mean(comparison.differing[f"{weight}:weight"]),
            in_file=layer in quantizers,
        )
        for weight, layer in comparison.layers.items()
    )


class _Comparison(Interpreter):
    """Runs a graph and, at every fake quantizer, the quantizer of the file on the same values."""

    def __init__(self, graph: ModelGraph, quantizers: Mapping[str, Quantizer]) -> None:
        super().__init__(graph.module)
        self.layers: dict[str, str] = {}
        """Name of a quantized weight to the name of its layer."""
        self.differing: dict[str, list[float]] = defaultdict(list)
        """`WEIGHT:activation` and `WEIGHT:weight` to the fraction that differs for each image."""
        self._quantizers = quantizers
        self._sites: dict[Node, list[tuple[str, str]]] = defaultdict(list)
        for weight, nodes in layer_nodes(graph.module).items():
            for index, operand in enumerate(("activation", "weight")):
                argument = shifted_quantizer(nodes[0].args[index]) or nodes[0].args[index]
                if isinstance(argument, Node) and _is_quantizer(argument):
                    self._sites[argument].append((weight, operand))
                    self.layers[weight] = layer_of(weight)

    def run_node(self, n: Node) -> Any:
        """Compute a node; compare the output of a fake quantizer with that of the file's quantizer."""
        result = super().run_node(n)
        for weight, operand in self._sites.get(n, ()):
            quantizer = self._quantizers.get(layer_of(weight))
            if quantizer is None or (operand == "weight" and self.differing[weight + ":weight"]):
                continue
            source = self._input_of(n).numpy()
            found = (
                quantizer.weight()
                if operand == "weight"
                else _quantized(quantizer, source, unsigned=is_op(n, FAKE_QUANT) and bool(n.args[4] == 0))
            )
            if found is not None:
                near = source if operand == "activation" else result.numpy()
                self.differing[f"{weight}:{operand}"].append(_differing(result.numpy(), found, near))
        return result

    def _input_of(self, quantizer: Node) -> torch.Tensor:
        """Return the float input of a fake quantizer."""
        tensor: torch.Tensor = self.map_nodes_to_values(quantizer.args[0], quantizer)  # type: ignore[assignment]
        return tensor.detach()


def _is_quantizer(node: Node) -> bool:
    return node.op == "call_function" and str(node.target).startswith("vitslim.fake_quant")


def _quantized(quantizer: Quantizer, source: Floats, *, unsigned: bool) -> Floats | None:
    """Return an activation after the quantizer of the file; None when the file does not quantize it.

    A file with signed integers in place of unsigned ones subtracts a constant before the quantizer, and corrects the
    bias for it.
    """
    offset = quantizer.input_offset if unsigned else np.float32(0)
    found = quantizer.input(source - offset)
    return None if found is None else found + offset


def _differing(expected: Floats, found: Floats, source: Floats) -> float:
    """Return the fraction of values whose distance from `source` differs.

    Halfway between two integers both distances are equal, and either integer is right.
    """
    if expected.size != found.size:
        return 1.0
    of_graph, of_file = (np.abs(one.reshape(-1) - source.reshape(-1)) for one in (expected, found))
    size = np.abs(expected.reshape(-1))
    return float(np.mean(np.abs(of_graph - of_file) > RELATIVE_TOLERANCE * size + TOLERANCE * size.max()))


def _mean(fractions: list[float]) -> float | None:
    return float(np.mean(fractions)) if fractions else None
