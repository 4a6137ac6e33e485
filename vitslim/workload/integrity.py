"""Check the integrity of an ONNX file: sizes of constants, external data, arity and order of its nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path, PureWindowsPath
from types import MappingProxyType

import onnx
from google.protobuf.message import Message  # type: ignore[import-untyped]
from onnx import NodeProto, TensorProto

from vitslim.errors import InputError
from vitslim.workload.weights import element_bits

DAMAGED_HINT = "the file is damaged: export it again"
CONTRIBUTED_INPUTS = MappingProxyType({
    "ConvInteger": 2, "ConvTranspose": 2, "DynamicQuantizeMatMul": 3, "Einsum": 1, "FusedConv": 2, "FusedGemm": 2,
    "FusedMatMul": 2, "Gelu": 1, "Gemm": 2, "MatMul": 2, "MatMulInteger": 2, "MatMulIntegerToFloat": 4,
    "MatMulNBits": 3, "Conv": 2, "QGemm": 6, "QLinearAdd": 7, "QLinearConcat": 3, "QLinearConv": 8,
    "QLinearLeakyRelu": 4, "QLinearMatMul": 8, "QLinearMul": 7, "QLinearSigmoid": 4, "QLinearSoftmax": 4,
    "QuickGelu": 1,
})  # fmt: skip
"""Smallest number of inputs of operators of other domains that vitslim reads, those named as standard ones included."""
LOCATION_HINT = "keep the data file in the folder of the model, and refer to it by its file name"


def check_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Raise InputError unless all external data is in the folder of the file and has the declared length.

    Reads no data, because a hostile file may name any path and any length.
    """
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            _check_external(tensor, path)


def check_texts(message: Message, path: Path) -> None:
    """Raise InputError for a text that is not UTF-8, which protobuf returns as bytes."""
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for one in (value,) if isinstance(value, str | bytes | Message) else value:
            if isinstance(one, bytes):
                raise InputError(f"a `{field.name}` in '{path}' is not UTF-8 text", DAMAGED_HINT)
            if isinstance(one, Message):
                check_texts(one, path)


def check_arity(model: onnx.ModelProto, path: Path) -> None:
    """Raise InputError when an operator has fewer inputs or outputs than it requires."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 1))
    for node in model.graph.node:
        inputs, outputs = _required(node, version)
        if len(node.input) < inputs or len(node.output) < outputs:
            raise InputError(
                f"{node.op_type} '{node.name}' of '{path}' requires {inputs} inputs and {outputs} outputs, got "
                f"{len(node.input)} and {len(node.output)}",
                DAMAGED_HINT,
            )


def _required(node: NodeProto, version: int) -> tuple[int, int]:
    """Return the smallest number of inputs and outputs; none and one for an operator that vitslim does not know."""
    if node.domain in {"", "ai.onnx"}:
        try:
            schema = onnx.defs.get_schema(node.op_type, version)
        except onnx.defs.SchemaError:
            pass
        else:
            return schema.min_input, schema.min_output
    return CONTRIBUTED_INPUTS.get(node.op_type, 0), 1


def external_files(model: onnx.ModelProto) -> set[str]:
    """Return the names of the external data files, relative to the folder of the model."""
    return {
        entry.value
        for tensor in _tensors(model)
        if tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _check_external(tensor: TensorProto, path: Path) -> None:
    entries: dict[str, str] = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    shown = f"'{path}' stores the weight '{tensor.name}' in '{location}'"
    if not location or "\0" in location:
        raise InputError(f"'{path}' stores the weight '{tensor.name}' in a file without a valid name", DAMAGED_HINT)
    folder = path.parent.resolve()
    if Path(location).is_absolute() or PureWindowsPath(location).is_absolute() or ".." in Path(location).parts:
        raise InputError(f"{shown}, which is not a path inside the folder of the model", LOCATION_HINT)
    data = (folder / location).resolve()
    if not data.is_relative_to(folder):
        raise InputError(f"{shown}, which links to '{data}' outside the folder of the model", LOCATION_HINT)
    if not data.is_file():
        raise InputError(f"{shown}, which does not exist", LOCATION_HINT)
    try:
        offset, expected = int(entries.get("offset", 0)), tensor_bytes(tensor)
        length = int(entries.get("length", expected))
    except ValueError as error:
        raise InputError(f"{shown}, but its offset or length is not a number", DAMAGED_HINT) from error
    if offset < 0 or length != expected or offset + length > data.stat().st_size:
        raise InputError(
            f"{shown}, which has {data.stat().st_size} bytes; the model declares {length} bytes at offset {offset}, "
            f"and a weight of shape {list(tensor.dims)} has {expected}",
            "the data file is truncated, or belongs to another model",
        )


def check_tensors(model: onnx.ModelProto, path: Path) -> None:
    """Raise InputError when the size of a constant does not match its type and shape."""
    for tensor in _tensors(model):
        shown = f"the constant '{tensor.name}' of '{path}'"
        if tensor.data_type not in TensorProto.DataType.values()[1:] or any(size < 0 for size in tensor.dims):
            raise InputError(f"{shown} has no valid type or shape", DAMAGED_HINT)
        if element_bits(int(tensor.data_type)) == 6:  # ONNX does not specify how 6-bit types are packed
            continue
        expected, found = tensor_bytes(tensor), len(tensor.raw_data)
        if not tensor.HasField("raw_data"):
            expected, found = _entries(tensor)
        if expected != found:
            raise InputError(
                f"{shown} has the shape {list(tensor.dims)}, which requires {expected} "
                f"{'bytes' if tensor.HasField('raw_data') else 'entries'}, got {found}",
                DAMAGED_HINT,
            )


def check_order(model: onnx.ModelProto, path: Path) -> None:
    """Raise InputError when two nodes compute the same value, or a node reads a value before it is computed."""
    computed_at: dict[str, int] = {}
    for index, node in enumerate(model.graph.node):
        for name in filter(None, node.output):
            if name in computed_at:
                raise InputError(f"'{path}' computes the value '{name}' twice", DAMAGED_HINT)
            computed_at[name] = index
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            if computed_at.get(name, -1) >= index:
                raise InputError(f"{node.op_type} '{node.name}' of '{path}' reads '{name}' before it is computed",
                                 "the nodes are out of order or form a cycle: export the file again")  # fmt: skip


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Yield all constants: initializers and tensor attributes, also of subgraphs and local functions."""
    yield from model.graph.initializer
    yield from _attributes(model.graph.node)
    for function in model.functions:
        yield from _attributes(function.node)


def _attributes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from inner.initializer
                yield from _attributes(inner.node)


def tensor_bytes(tensor: TensorProto) -> int:
    """Return the bytes of the raw data of a tensor; types below 8 bits are packed."""
    return -(-prod(map(int, tensor.dims)) * element_bits(int(tensor.data_type)) // 8)


def _entries(tensor: TensorProto) -> tuple[int, int]:
    """Return the expected and the found number of entries in the typed field of a tensor without raw data."""
    count, kind = prod(map(int, tensor.dims)), int(tensor.data_type)
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data,
              tensor.string_data)  # fmt: skip
    found = max(map(len, fields))
    if kind in {TensorProto.COMPLEX64, TensorProto.COMPLEX128}:
        return 2 * count, found
    if kind == TensorProto.STRING:
        return count, found
    return (-(-count * element_bits(kind) // 8) if element_bits(kind) < 8 else count), found
