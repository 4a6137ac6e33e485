"""Whether an ONNX file is whole: constants as long as declared, external data beside it, nodes in order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path, PureWindowsPath

import onnx
from onnx import NodeProto, TensorProto

from vitslim.errors import InputError
from vitslim.workload.weights import element_bits

DAMAGED_HINT = "the file is damaged: write it again"
BESIDE_HINT = "keep the data file in the folder of the model, and name it by its file name"


def check_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Raise InputError unless all data outside the file lies in the file's folder and is as long as declared.

    Nothing is read: a name may lead to any file of this machine, and a length may be anything.
    """
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            _check_external(tensor, path)


def check_arity(model: onnx.ModelProto, path: Path) -> None:
    """Raise InputError when a standard operator has fewer inputs or outputs than it needs."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    version = versions.get("", versions.get("ai.onnx", 1))
    for node in model.graph.node:
        if node.domain not in {"", "ai.onnx"}:
            continue
        try:
            schema = onnx.defs.get_schema(node.op_type, version)
        except onnx.defs.SchemaError:
            continue
        if len(node.input) < schema.min_input or len(node.output) < schema.min_output:
            raise InputError(
                f"{node.op_type} '{node.name}' of '{path}' has {len(node.input)} inputs and {len(node.output)} "
                f"outputs, and needs {schema.min_input} and {schema.min_output}",
                DAMAGED_HINT,
            )


def external_files(model: onnx.ModelProto) -> set[str]:
    """Names, relative to the folder of the file, of the files that hold weights."""
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
    shown = f"'{path}' keeps the weight '{tensor.name}' in '{location}'"
    if not location or "\0" in location:
        raise InputError(f"'{path}' keeps the weight '{tensor.name}' in a file without a name", DAMAGED_HINT)
    folder = path.parent.resolve()
    if Path(location).is_absolute() or PureWindowsPath(location).is_absolute() or ".." in Path(location).parts:
        raise InputError(f"{shown}, which is not a path inside its folder", BESIDE_HINT)
    data = (folder / location).resolve()
    if not data.is_relative_to(folder):
        raise InputError(f"{shown}, which leads out of its folder to '{data}'", BESIDE_HINT)
    if not data.is_file():
        raise InputError(f"{shown}, which is missing: its external weights cannot be read", BESIDE_HINT)
    try:
        offset, expected = int(entries.get("offset", 0)), tensor_bytes(tensor)
        length = int(entries.get("length", expected))
    except ValueError as error:
        raise InputError(f"{shown}, at a place that is no number", DAMAGED_HINT) from error
    if offset < 0 or length != expected or offset + length > data.stat().st_size:
        raise InputError(
            f"{shown}, which has {data.stat().st_size} bytes; declared are {length} from {offset} on, and a weight of "
            f"{list(tensor.dims)} has {expected}",
            "the data file is cut off, or belongs to another model",
        )


def check_tensors(model: onnx.ModelProto, path: Path) -> None:
    """Raise InputError when a constant holds more or fewer bytes than its type and shape declare."""
    for tensor in _tensors(model):
        shown = f"the constant '{tensor.name}' of '{path}'"
        if tensor.data_type not in TensorProto.DataType.values()[1:] or any(size < 0 for size in tensor.dims):
            raise InputError(f"{shown} has no valid type or shape", DAMAGED_HINT)
        if element_bits(int(tensor.data_type)) == 6:  # how six bits are packed, onnx leaves open
            continue
        expected, found = tensor_bytes(tensor), len(tensor.raw_data)
        if not tensor.HasField("raw_data"):
            expected, found = _entries(tensor)
        if expected != found:
            raise InputError(
                f"{shown} declares the shape {list(tensor.dims)}, which takes {expected} "
                f"{'bytes' if tensor.HasField('raw_data') else 'entries'}, but holds {found}",
                DAMAGED_HINT,
            )


def check_order(model: onnx.ModelProto, path: Path) -> None:
    """Raise InputError when a value is made twice, or read by a node before another one makes it, as in a cycle."""
    made_at: dict[str, int] = {}
    for index, node in enumerate(model.graph.node):
        for name in filter(None, node.output):
            if name in made_at:
                raise InputError(f"'{path}' makes the value '{name}' twice", DAMAGED_HINT)
            made_at[name] = index
    for index, node in enumerate(model.graph.node):
        for name in node.input:
            if made_at.get(name, -1) >= index:
                raise InputError(f"{node.op_type} '{node.name}' of '{path}' reads '{name}' before it is made",
                                 "its nodes are out of order or in a cycle: write it again")  # fmt: skip


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """All constants: initializers, attributes of nodes, and those of subgraphs and local functions."""
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
    """Bytes of the raw data of a tensor; types below 8 bits are packed."""
    return -(-prod(map(int, tensor.dims)) * element_bits(int(tensor.data_type)) // 8)


def _entries(tensor: TensorProto) -> tuple[int, int]:
    """Expected and found numbers of entries in the typed field of a tensor without raw data."""
    count, kind = prod(map(int, tensor.dims)), int(tensor.data_type)
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data,
              tensor.string_data)  # fmt: skip
    found = max(map(len, fields))
    if kind in {TensorProto.COMPLEX64, TensorProto.COMPLEX128}:
        return 2 * count, found
    if kind == TensorProto.STRING:
        return count, found
    return (-(-count * element_bits(kind) // 8) if element_bits(kind) < 8 else count), found
