"""Inspect an ONNX file: its contents, the kernels that ONNX Runtime selects, and violations of its own claims."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from vitslim.backends.measured.kernels import INTEGER_KERNELS, Kernels, read_kernels
from vitslim.errors import InputError
from vitslim.files import find_model
from vitslim.progress import Progress, Silent
from vitslim.workload import load_onnx
from vitslim.workload.contents.file_contents import FileContents, Layer, Violation
from vitslim.workload.contents.read_contents import name_nodes, read_contents
from vitslim.workload.onnx_file import PROTOBUF_BYTES_MAX, stored_bytes

if TYPE_CHECKING:
    from vitslim.pipeline.inspect.layer_integers import LayerDifference

CONVOLUTIONS = frozenset({"Conv", "FusedConv"})


@dataclass(frozen=True)
class Inspection:
    """Result of inspecting one file."""

    path: Path
    stored_bytes: int
    """Size of the file and its external data."""
    contents: FileContents
    kernels: Kernels | None
    """None when ONNX Runtime cannot load the file."""
    kernels_error: str
    """Reason why ONNX Runtime cannot load the file; else empty."""
    differences: tuple[LayerDifference, ...]
    """Comparison with the saved graph; empty unless requested."""
    violations: tuple[Violation, ...]

    def kernel(self, layer: Layer) -> str:
        """Return the kernel that ONNX Runtime runs for a layer; empty when unknown."""
        return "" if self.kernels is None else self.kernels.by_node.get(layer.node, "")

    @property
    def device_bytes(self) -> float:
        """Bytes of all constants on a device that stores weights at their effective bits; without the graph itself."""
        constants = self.contents.scale_bytes + self.contents.other_bytes
        return constants + sum(layer.device_bytes for layer in self.distinct_layers)

    @property
    def distinct_layers(self) -> tuple[Layer, ...]:
        """One layer for each stored weight."""
        return tuple({layer.weight: layer for layer in self.contents.layers}.values())


def inspect(path: Path, layers: bool = False, progress: Progress | None = None) -> Inspection:
    """Inspect an ONNX file, or the model in the folder of a run.

    layers: compare the integers of every layer with those of the graph that is saved in the folder of the file.
    Raises InputError for a damaged ONNX file and, with `layers`, when the folder has no saved graph.
    """
    folder = path if path.is_dir() else path.parent
    path = found if path.is_dir() and (found := find_model(path)).is_file() else path
    model = load_onnx(path)
    renamed = name_nodes(model)
    contents = read_contents(model)
    kernels, error = _kernels(model, path, renamed)
    differences = _differences(model, contents, folder, progress or Silent()) if layers else ()
    violations = (*contents.violations, *_not_fused(contents, kernels, error), *_differing(differences))
    return Inspection(path, stored_bytes(path), contents, kernels, error, differences, violations)


def _kernels(model: onnx.ModelProto, path: Path, renamed: bool) -> tuple[Kernels | None, str]:
    """Return the kernels, or the reason why there are none. Renamed nodes require the model in memory, not its file."""
    if renamed and model.ByteSize() > PROTOBUF_BYTES_MAX:
        return None, "its nodes have no names, and it is too large to be loaded from memory"
    try:
        return read_kernels(model.SerializeToString() if renamed else path, f"'{path}'"), ""
    except InputError as error:
        return None, error.message


def _differences(
    model: onnx.ModelProto, contents: FileContents, folder: Path, progress: Progress
) -> tuple[LayerDifference, ...]:
    from vitslim.pipeline.inspect.layer_integers import compare_layers  # imports torch, which nothing else here needs

    return compare_layers(model, contents, folder, progress)


def _not_fused(contents: FileContents, kernels: Kernels | None, error: str) -> Iterator[Violation]:
    """Yield the matmuls between Q/DQ that do not run on integers."""
    claimed = {one.node: one.name for one in contents.layers
               if one.quantized_by == "Q/DQ" and one.type not in CONVOLUTIONS and not one.float8}  # fmt: skip
    claimed |= {node: node for node in contents.activation_matmuls}
    if kernels is None:
        if claimed:
            yield Violation("", f"{len(claimed)} matmuls between Q/DQ run on integers", error)
        return
    for node, name in claimed.items():
        kernel = kernels.by_node.get(node, "")
        if kernel not in INTEGER_KERNELS:
            found = f"ONNX Runtime runs {kernel} on floats" if kernel else "ONNX Runtime removed this matmul"
            yield Violation(name, "a matmul between Q/DQ runs on integers", found)


def _differing(differences: tuple[LayerDifference, ...]) -> Iterator[Violation]:
    for layer in differences:
        if not layer.in_file:
            yield Violation(layer.layer, "a layer of the graph is in the file", "no layer of this name")
        fractions: Mapping[str, float | None] = {"activation": layer.activations, "weight": layer.weights}
        for operand, fraction in fractions.items():
            if fraction:
                yield Violation(layer.layer, f"{operand} integers equal the graph's", f"{fraction:.3%} of them differ")
