"""ONNX files with changed bytes, or with changed fields of the protobuf."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import mutations
import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from targets import kept_copy

from vitslim.workload import load_onnx, read_metadata, read_workload
from vitslim.workload.contents.read_contents import name_nodes, read_contents

TEXT = """<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>
g (float[N, 3, 8, 8] x) => (float[N, 4] y) {
  c = Conv <strides = [4, 4]> (x, patch)
  r = Reshape (c, shape)
  t = Transpose <perm = [0, 2, 1]> (r)
  n = LayerNormalization <axis = -1> (t, gain, bias)
  q = QuantizeLinear (n, step, zero)
  d = DequantizeLinear (q, step, zero)
  w = DequantizeLinear <axis = 1> (integers, steps)
  a = MatMul (d, w)
  b = Add (a, bias)
  k = Transpose <perm = [0, 2, 1]> (b)
  l = MatMul (b, k)
  s = Softmax <axis = -1> (l)
  v = MatMul (s, b)
  e = Erf (v)
  f = Gather <axis = 1> (e, first)
  u = Slice (f, from, to, axes)
  z = Cast <to = 1> (u)
  y = Gemm <transB = 1> (z, head, classes)
}"""
"""A patch embedding, quantized attention and a head."""
NAMES = ("", "x", "y", "a", "w", "N", "\0", "x" * 300)
KINDS = ("MatMul", "Gemm", "If", "Loop", "Scan", "Reshape", "Conv", "QGemm", "MatMulInteger", "Constant", "Unknown", "")
LAYERS = ('[{"layer": "head", "weight_bits": 8, "sparsity": "2:4"}]', "[]", "{", "[1]", "[" * 5000, "null", '{"a": 1}')


class OnnxFiles:
    """The operators, the contents and the metadata of ONNX files."""

    read = 0

    def __init__(self, folder: Path) -> None:
        self.path, self.model = folder / "model.onnx", sample()

    def make(self, random: Random) -> None:
        """Write a changed file."""
        if random.random() < 0.4:
            self.path.write_bytes(mutations.mutated_bytes(self.model.SerializeToString(), random))
            return
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        for _ in range(random.choice((1, 1, 2, 4))):
            _change(model, random)
        self.path.write_bytes(model.SerializeToString())

    def keep(self) -> Path:
        """Copy the last input."""
        return kept_copy(self.path)

    def take(self) -> None:
        """Read it in every way."""
        model = load_onnx(self.path)
        name_nodes(model)
        read_contents(model)
        read_metadata(self.path)
        read_workload(self.path, 2)


def sample() -> onnx.ModelProto:
    """Return a valid model."""
    generator = np.random.default_rng(0)
    model: onnx.ModelProto = onnx.parser.parse_model(TEXT)
    floats = {
        name: generator.standard_normal(shape).astype(np.float32)
        for name, shape in {
            "patch": (8, 3, 4, 4),
            "gain": (8,),
            "bias": (8,),
            "steps": (8,),
            "head": (4, 8),
            "classes": (4,),
        }.items()
    }
    integers = {"shape": [0, 8, -1], "first": 0, "from": [0], "to": [8], "axes": [1]}
    constants: dict[str, Any] = floats | {name: np.array(value, np.int64) for name, value in integers.items()}
    constants |= {"step": np.float32(0.1), "zero": np.uint8(3), "integers": generator.integers(-9, 9, (8, 8), np.int8)}
    for name, value in constants.items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for index, node in enumerate(model.graph.node):
        node.name = f"n{index}"
        node.metadata_props.add(key="vitslim.layer", value=f"layer{index}")
    model.metadata_props.add(key="vitslim.layers", value=LAYERS[0])
    model.metadata_props.add(key="vitslim.mean", value="[0.5]")
    return model


def _change(model: onnx.ModelProto, random: Random) -> None:
    node, tensor = random.choice(model.graph.node), random.choice(model.graph.initializer)
    number = random.choice(mutations.NUMBERS)
    match random.randrange(12):
        case 0 if node.input:
            node.input[random.randrange(len(node.input))] = random.choice(NAMES)
        case 1 if node.output:
            node.output[random.randrange(len(node.output))] = random.choice(NAMES)
        case 2:
            node.op_type = random.choice(KINDS)
        case 3:
            del node.input[random.randrange(len(node.input) + 1) :]
        case 4 if node.attribute:
            _change_attribute(random.choice(node.attribute), random)
        case 5:
            tensor.dims[:] = [random.choice(mutations.NUMBERS) % 2**63 for _ in range(random.randrange(5))]
        case 6:
            tensor.data_type = random.randrange(30)
        case 7:
            tensor.raw_data = mutations.mutated_bytes(tensor.raw_data, random)
        case 8:
            tensor.data_location = TensorProto.EXTERNAL
            for key in ("location", "offset", "length"):
                tensor.external_data.add(
                    key=key, value=random.choice(("model.onnx", "..", "/etc/passwd", "-1", "9" * 30))
                )
        case 9:
            sizes = model.graph.input[0].type.tensor_type.shape.dim
            sizes[random.randrange(len(sizes))].dim_value = number % 2**63
        case 10:
            random.choice(model.metadata_props).value = random.choice(LAYERS)
        case _:
            model.graph.node.insert(random.randrange(len(model.graph.node)), node)


def _change_attribute(attribute: onnx.AttributeProto, random: Random) -> None:
    number = random.choice(mutations.NUMBERS)
    signed = (number + 2**63) % 2**64 - 2**63
    if random.random() < 0.3:
        attribute.name = random.choice(("axis", "perm", "axes", "to", "", "value"))
    elif attribute.ints and random.random() < 0.7:
        attribute.ints[random.randrange(len(attribute.ints))] = signed
    else:
        attribute.i = signed
        del attribute.ints[:]
