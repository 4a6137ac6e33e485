"""Find the operators of a float32 model whose values half precision cannot hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from vitslim.stages.export.stored_weight import LAYERS
from vitslim.workload.onnx_graph import layer_of
from vitslim.workload.session import Floats, open_session

FLOAT16_MAX = 65504.0
BATCH = 4
"""Images that run at a time: the probed model keeps all of its activations."""
SUFFIX = ".largest"


@dataclass(frozen=True)
class Overflow:
    """An operator that reads or computes a value beyond the range of half precision."""

    node: str
    """Name of its node."""
    operator: str
    layer: str
    """Layer that it belongs to or that it follows; the name of the node if there is none."""
    value: float
    """Largest magnitude among its inputs and outputs."""
    computed: bool
    """True: an output exceeds the range. False: only an input or a constant does."""

    @property
    def reason(self) -> str:
        """The operator and its value, such as `Add computes 81,920, beyond 65,504`."""
        return (
            f"{self.operator} {'computes' if self.computed else 'reads'} {self.value:,.0f}, beyond {FLOAT16_MAX:,.0f}"
        )


def first_overflow(found: Sequence[Overflow]) -> Iterator[str]:
    """Yield a line about the first operator beyond the range, and the number of all of them; none without any."""
    if found:
        first = found[0]
        yield f"half precision: {first.reason} ({first.layer}); {len(found)} operators stay in float32"


def find_overflows(model: onnx.ModelProto, images: Floats, batch: int | None) -> tuple[Overflow, ...]:
    """Return the operators with an input, a constant or an output beyond 65,504, in the order of the file.

    model: float32, with inferred types, every node named. images: float32 (n, C, H, W), over which the largest
    magnitude of each value is taken. batch: the fixed batch size of the model; None for a dynamic one.
    """
    largest = _constants(model) | _activations(model, images, batch)
    layers, found = _layers(model), []
    for node in model.graph.node:
        inputs, outputs = (_exceeding(largest, names) for names in (node.input, node.output))
        if inputs or outputs:
            layer = layers.get(node.output[0], node.name)
            found.append(Overflow(node.name, node.op_type, layer, max(inputs + outputs), bool(outputs)))
    return tuple(found)


def _exceeding(largest: Mapping[str, float], names: object) -> list[float]:
    values = [largest.get(str(name), 0.0) for name in names]  # type: ignore[attr-defined]
    return [value for value in values if not value <= FLOAT16_MAX]


def _layers(model: onnx.ModelProto) -> dict[str, str]:
    """Map each value to the layer that computes it, or to the last one among those that its inputs come from."""
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) > 1}
    last: dict[str, tuple[int, str]] = {}
    for index, node in enumerate(model.graph.node):
        own = next((name for name in node.input if name in matrices), "")
        before = [last[name] for name in node.input if name in last]
        found = (index, layer_of(node, own)) if own and node.op_type in LAYERS else max(before, default=None)
        if found is not None:
            last.update(dict.fromkeys(node.output, found))
    return {value: layer for value, (_, layer) in last.items()}


def _constants(model: onnx.ModelProto) -> dict[str, float]:
    """Map each float32 constant to its largest finite magnitude. Infinite ones are masks, which stay infinite."""
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    return {name: float(np.abs(array[np.isfinite(array)]).max(initial=0)) for name, array in arrays.items()}


def _activations(model: onnx.ModelProto, images: Floats, batch: int | None) -> dict[str, float]:
    """Map each float32 value that nodes compute to its largest magnitude over the images."""
    probed = list(_float_outputs(model))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    for name in probed:
        probe.graph.node.append(helper.make_node("Abs", [name], [f"{name}.magnitude"]))
        probe.graph.node.append(helper.make_node("ReduceMax", [f"{name}.magnitude"], [name + SUFFIX], keepdims=0))
        probe.graph.output.append(helper.make_tensor_value_info(name + SUFFIX, TensorProto.FLOAT, []))
    session = open_session(probe.SerializeToString(), "the float32 model", fuse=False)
    outputs, source = [name + SUFFIX for name in probed], session.get_inputs()[0].name
    found = [session.run(outputs, {source: part}) for part in _batches(images, batch)]
    return dict(zip(probed, np.array(found, np.float64).max(axis=0).tolist(), strict=True))


def _float_outputs(model: onnx.ModelProto) -> Iterator[str]:
    """Yield the names of the float32 values that depend on the images."""
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.value_info, *model.graph.output)}
    computed = {value.name for value in model.graph.input}
    for node in model.graph.node:
        if not computed.isdisjoint(node.input):
            computed.update(node.output)
            yield from (name for name in node.output if types.get(name) == TensorProto.FLOAT)


def _batches(images: Floats, batch: int | None) -> Iterator[NDArray[np.float32]]:
    """Yield all images in batches; images repeat in the last one if the batch size is fixed."""
    for start in range(0, len(images), batch or BATCH):
        part = images[start : start + (batch or BATCH)]
        yield part if batch is None else np.resize(part, (batch, *part.shape[1:]))
