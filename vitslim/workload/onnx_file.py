"""Open ONNX files, and refuse damaged ones with an error that says how to repair them."""

from __future__ import annotations

import json
from pathlib import Path
from stat import S_ISREG
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.inliner import inline_local_functions

from vitslim.errors import InputError
from vitslim.host_memory import require_memory
from vitslim.units import format_bytes
from vitslim.workload.integrity import (
    check_arity,
    check_external_data,
    check_order,
    check_tensors,
    check_texts,
    external_files,
)

METADATA_PREFIX = "vitslim."
DAMAGED_HINT = "export the file again, for instance with the export stage of a recipe"
PROTOBUF_BYTES_MAX = 2**31 - 1
"""Largest protobuf message; larger models keep their weights in a second file."""


def check_onnx_file(path: Path) -> None:
    """Raise InputError for a path that is missing, a folder, not readable, empty, or larger than 2 GiB."""
    if path.is_dir():
        raise InputError(f"expected an ONNX file, got the folder '{path}'", "give the .onnx file inside it")
    try:
        status = path.stat()
        if S_ISREG(status.st_mode):  # reading a pipe would block, and a device may never end
            with path.open("rb") as file:
                file.read(1)
    except FileNotFoundError as error:
        raise InputError(f"'{path}' does not exist", "give the path of an ONNX file") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"'{path}' cannot be read: {reason}", "check its name and permissions") from error
    if not S_ISREG(status.st_mode):
        raise InputError(f"'{path}' is not a regular file", "give the path of an ONNX file")
    if not status.st_size:
        raise InputError(f"'{path}' is empty", DAMAGED_HINT)
    if status.st_size > PROTOBUF_BYTES_MAX:
        raise InputError(
            f"an ONNX file holds at most 2 GiB, but '{path}' has {format_bytes(status.st_size)}",
            "keep the weights in a second file: onnx.save(..., save_as_external_data=True)",
        )


def load_onnx(path: Path) -> onnx.ModelProto:
    """Return the model of a file with its weights, local functions inlined.

    Raises InputError for a file that is missing, empty, truncated, too large, not ONNX or inconsistent, and for
    external weights that are missing, too short, or outside the folder of the file.
    """
    check_onnx_file(path)
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise InputError(f"'{path}' is not an ONNX file, or is truncated", DAMAGED_HINT) from error
    if not model.ir_version or not model.graph.node or not model.graph.input or not model.graph.output:
        raise InputError(f"'{path}' contains no ONNX graph", DAMAGED_HINT)
    check_texts(model, path)
    check_external_data(model, path)
    external = sum((path.parent / name).stat().st_size for name in external_files(model))
    require_memory(path.stat().st_size + external, f"'{path}'")
    _load_external_data(model, path)
    check_tensors(model, path)
    model = _without_functions(model, path)
    check_order(model, path)
    check_arity(model, path)
    return model


def stored_bytes(path: Path) -> int:
    """Return the size of a valid ONNX file together with its external data, in bytes."""
    model = onnx.load(str(path), format="protobuf", load_external_data=False)
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in external_files(model))


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(
            f"the external weights of '{path}' cannot be read: {error}", "keep the data file in the folder of the model"
        ) from error


def _without_functions(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    if not model.functions:
        return model
    try:
        return inline_local_functions(model)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"the local functions of '{path}' cannot be inlined: {error}", DAMAGED_HINT) from error


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the `vitslim.` entries of the model-level metadata of an ONNX file, without that prefix.

    JSON values are decoded. Raises InputError as `load_onnx` does.
    """
    model = load_onnx(path)
    props = {prop.key: prop.value for prop in model.metadata_props}
    return {
        key.removeprefix(METADATA_PREFIX): _decoded(v) for key, v in props.items() if key.startswith(METADATA_PREFIX)
    }


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
