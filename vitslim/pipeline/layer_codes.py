"""Codes of every layer of a file against those of the fake-quantized graph, on identical inputs.

Layer by layer, because end to end a code on the edge of rounding falls to either side, and the difference cascades.
Numbers are compared after dequantizing: two of one quantizer are equal exactly when their codes are.
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

from vitslim.backends.measured.quantizers import Floats, Quantizer, find_quantizers
from vitslim.data import load_data
from vitslim.graph.edits.fake_quant import layer_nodes, layer_of
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph
from vitslim.progress import Progress
from vitslim.recipe.schema import Data
from vitslim.workload.facts import FileFacts

IMAGES = 4
RELATIVE_TOLERANCE = 1e-5
"""Far below one step of 8 bits, far above the rounding of a product in float32."""
TOLERANCE = 1e-6
"""The same as a fraction of the largest number, for what a file takes from an input before rounding."""


@dataclass(frozen=True)
class LayerCodes:
    """How many codes of one layer differ between file and graph, as fractions in [0, 1]."""

    layer: str
    inputs: float | None
    """None where the file or the graph does not quantize the input."""
    weights: float | None
    in_file: bool = True
    """Whether the file has a layer of this name at all."""


def compare_codes(model: onnx.ModelProto, facts: FileFacts, folder: Path, progress: Progress) -> tuple[LayerCodes, ...]:
    """Differing codes of every layer that the graph quantizes, in its order, on pictures of digits.

    Every layer of both gets the float input that the graph's layer sees, one image at a time. Raises InputError when
    the folder holds no saved graph.
    """
    graph = load_graph(folder)
    images = load_data(Data(kind="digits", calibration=IMAGES), graph.source, seed=0).calibration
    quantizers = find_quantizers(model, facts.layers)
    comparison = _Comparison(graph, quantizers)
    for index in progress.track(range(IMAGES), "comparing codes"):
        with torch.no_grad():
            comparison.run(images[index][0].unsqueeze(0))
    return tuple(
        LayerCodes(
            layer=layer,
            inputs=_share(comparison.differing[f"{weight}:input"]),
            weights=_share(comparison.differing[f"{weight}:weight"]),
            in_file=layer in quantizers,
        )
        for weight, layer in comparison.layers.items()
    )


class _Comparison(Interpreter):
    """Runs a graph and, at every fake quantizer, the file's quantizer on the same numbers."""

    def __init__(self, graph: ModelGraph, quantizers: Mapping[str, Quantizer]) -> None:
        super().__init__(graph.module)
        self.layers: dict[str, str] = {}
        """Weight to the name of its layer, for all that the graph quantizes."""
        self.differing: dict[str, list[float]] = defaultdict(list)
        """Weight and operand to the fraction that differs, for each image."""
        self._quantizers = quantizers
        self._sites: dict[Node, list[tuple[str, str]]] = defaultdict(list)
        for weight, nodes in layer_nodes(graph.module).items():
            for operand, name in enumerate(("input", "weight")):
                argument = nodes[0].args[operand]
                if isinstance(argument, Node) and _is_quantizer(argument):
                    self._sites[argument].append((weight, name))
                    self.layers[weight] = layer_of(weight)

    def run_node(self, n: Node) -> Any:
        """Compute a node; at a fake quantizer compare what comes out."""
        result = super().run_node(n)
        for weight, operand in self._sites.get(n, ()):
            quantizer = self._quantizers.get(layer_of(weight))
            if quantizer is None or (operand == "weight" and self.differing[weight + ":weight"]):
                continue
            given = self._given(n).numpy()
            found = (
                quantizer.weight() if operand == "weight" else _input(quantizer, given, unsigned=bool(n.args[4] == 0))
            )
            if found is not None:
                near = given if operand == "input" else result.numpy()
                self.differing[f"{weight}:{operand}"].append(_differing(result.numpy(), found, near))
        return result

    def _given(self, quantizer: Node) -> torch.Tensor:
        """The numbers that a fake quantizer gets."""
        tensor: torch.Tensor = self.map_nodes_to_values(quantizer.args[0], quantizer)  # type: ignore[assignment]
        return tensor.detach()


def _is_quantizer(node: Node) -> bool:
    return node.op == "call_function" and str(node.target).startswith("vitslim.fake_quant")


def _input(quantizer: Quantizer, given: Floats, *, unsigned: bool) -> Floats | None:
    """What a file makes of an input. Where it has signed codes for unsigned ones, it takes a constant away before and
    makes up for it in the bias."""
    moved = quantizer.moved if unsigned else np.float32(0)
    found = quantizer.input(given - moved)
    return None if found is None else found + moved


def _differing(expected: Floats, found: Floats, given: Floats) -> float:
    """The fraction of numbers that differ, where it matters how far they are from what was given: halfway between two
    codes both are right."""
    if expected.size != found.size:
        return 1.0
    ours, theirs = (np.abs(one.reshape(-1) - given.reshape(-1)) for one in (expected, found))
    size = np.abs(expected.reshape(-1))
    return float(np.mean(np.abs(ours - theirs) > RELATIVE_TOLERANCE * size + TOLERANCE * size.max()))


def _share(fractions: list[float]) -> float | None:
    return float(np.mean(fractions)) if fractions else None
