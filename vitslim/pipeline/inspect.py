"""`inspect`: what an ONNX file holds, what ONNX Runtime makes of it, and whether it keeps what it promises."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from vitslim.backends.measured.kernels import INTEGER_KERNELS, Kernels, read_kernels
from vitslim.errors import InputError
from vitslim.files import MODEL_FILE
from vitslim.progress import Progress, Silent
from vitslim.workload import load_onnx
from vitslim.workload.describe import describe, name_nodes
from vitslim.workload.facts import BrokenPromise, FileFacts, Layer
from vitslim.workload.file import PROTOBUF_BYTES_MAX, stored_bytes

if TYPE_CHECKING:
    from vitslim.pipeline.layer_codes import LayerCodes

CONVOLUTIONS = frozenset({"Conv", "FusedConv"})


@dataclass(frozen=True)
class Inspection:
    """Everything that was found out about one file."""

    path: Path
    stored_bytes: int
    """Of the file and of the files in which it keeps weights."""
    facts: FileFacts
    kernels: Kernels | None
    """None when ONNX Runtime does not take the file."""
    refusal: str
    """Why it does not."""
    codes: tuple[LayerCodes, ...]
    """Only where they were asked for."""
    broken: tuple[BrokenPromise, ...]

    def kernel(self, layer: Layer) -> str:
        """What ONNX Runtime runs in the place of a layer; empty when that cannot be told."""
        return "" if self.kernels is None else self.kernels.by_node.get(layer.node, "")

    @property
    def true_bytes(self) -> float:
        """All constants, weights of layers at their real bits and with their pattern; the graph itself not counted."""
        return self.facts.scale_bytes + self.facts.other_bytes + sum(one.true_bytes for one in self.distinct_layers)

    @property
    def distinct_layers(self) -> tuple[Layer, ...]:
        """One layer for each stored weight."""
        return tuple({layer.weight: layer for layer in self.facts.layers}.values())


def inspect(path: Path, layers: bool = False, progress: Progress | None = None) -> Inspection:
    """Inspect an ONNX file, or the model in the folder of a run.

    layers: compare the codes of every layer with the graph that lies beside the file.
    Raises InputError for a file that is not a whole ONNX file and, with `layers`, where there is no such graph.
    """
    path = path / MODEL_FILE if (path / MODEL_FILE).is_file() else path
    model = load_onnx(path)
    changed = name_nodes(model)
    facts = describe(model)
    kernels, refusal = _kernels(model, path, changed)
    codes = _codes(model, facts, path.parent, progress or Silent()) if layers else ()
    broken = (*facts.broken, *_not_fused(facts, kernels, refusal), *_differing(codes))
    return Inspection(path, stored_bytes(path), facts, kernels, refusal, codes, broken)


def _kernels(model: onnx.ModelProto, path: Path, changed: bool) -> tuple[Kernels | None, str]:
    """Kernels, or why there are none. A model with nodes that had to be named goes to the runtime with their names."""
    if changed and model.ByteSize() > PROTOBUF_BYTES_MAX:
        return None, "its nodes have no names, and it is too large to give them some"
    try:
        return read_kernels(model.SerializeToString() if changed else path, f"'{path}'"), ""
    except InputError as error:
        return None, error.message


def _codes(model: onnx.ModelProto, facts: FileFacts, folder: Path, progress: Progress) -> tuple[LayerCodes, ...]:
    from vitslim.pipeline.layer_codes import compare_codes  # brings torch along, which nothing else here needs

    return compare_codes(model, facts, folder, progress)


def _not_fused(facts: FileFacts, kernels: Kernels | None, refusal: str) -> Iterator[BrokenPromise]:
    """Matrix products between Q/DQ that do not run on integers."""
    promised = {one.node: one.name for one in facts.layers
                if one.quantized_by == "Q/DQ" and one.type not in CONVOLUTIONS}  # fmt: skip
    promised |= {node: node for node in facts.activation_products}
    if kernels is None:
        if promised:
            yield BrokenPromise("", f"{len(promised)} products between Q/DQ run on integers", refusal)
        return
    for node, name in promised.items():
        kernel = kernels.by_node.get(node, "")
        if kernel not in INTEGER_KERNELS:
            found = f"ONNX Runtime runs {kernel} on floats" if kernel else "ONNX Runtime has no such product"
            yield BrokenPromise(name, "a product between Q/DQ runs on integers", found)


def _differing(codes: tuple[LayerCodes, ...]) -> Iterator[BrokenPromise]:
    for layer in codes:
        if not layer.in_file:
            yield BrokenPromise(layer.layer, "a layer of the graph is in the file", "no layer of this name")
        shares: Mapping[str, float | None] = {"input": layer.inputs, "weight": layer.weights}
        for what, share in shares.items():
            if share:
                yield BrokenPromise(layer.layer, f"{what} codes are those of the graph", f"{share:.3%} of them differ")
