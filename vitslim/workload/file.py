"""Opening ONNX files, with errors that a person can act on."""

from __future__ import annotations

import json
from pathlib import Path
from stat import S_ISREG
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.inliner import inline_local_functions

from vitslim.errors import InputError
from vitslim.units import format_bytes
from vitslim.workload.whole import check_arity, check_external_data, check_order, check_tensors, external_files

METADATA_PREFIX = "vitslim."
BROKEN_HINT = "write the file again, for instance with the export stage of a recipe"
PROTOBUF_BYTES_MAX = 2**31 - 1
"""What one protobuf message can hold; larger weights lie in a second file."""


def check_onnx_file(path: Path) -> None:
    """Raise InputError when a path cannot be an ONNX file: missing, a folder, not readable, empty, or above 2 GiB."""
    if path.is_dir():
        raise InputError(f"'{path}' is a folder, not an ONNX file", "give the .onnx file inside it")
    try:
        status = path.stat()
        if S_ISREG(status.st_mode):  # a pipe would wait for its other end, and a device never stop
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
        raise InputError(f"'{path}' is empty", BROKEN_HINT)
    if status.st_size > PROTOBUF_BYTES_MAX:
        raise InputError(
            f"'{path}' has {format_bytes(status.st_size)}, and an ONNX file holds 2 GiB at most",
            "larger models keep their weights in a second file: onnx.save(..., save_as_external_data=True)",
        )


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read a model with its weights; local functions are inlined.

    Raises InputError for a file that is missing, empty, truncated, too large, not ONNX or contradicts itself, and for
    external weights that are missing, too short, or outside the folder of the file.
    """
    check_onnx_file(path)
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise InputError(f"'{path}' is not an ONNX file, or was cut off", BROKEN_HINT) from error
    if not model.ir_version or not model.graph.node or not model.graph.input or not model.graph.output:
        raise InputError(f"'{path}' holds no ONNX graph", BROKEN_HINT)
    check_external_data(model, path)
    _load_external_data(model, path)
    check_tensors(model, path)
    model = _without_functions(model, path)
    check_order(model, path)
    check_arity(model, path)
    return model


def stored_bytes(path: Path) -> int:
    """Bytes of an ONNX file that can be loaded, and of the files in which it keeps weights."""
    model = onnx.load(str(path), format="protobuf", load_external_data=False)
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in external_files(model))


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Weights may lie in a second file beside the model."""
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"the external weights of '{path}' cannot be read", "keep the data file beside it") from error


def _without_functions(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    if not model.functions:
        return model
    try:
        return inline_local_functions(model)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"the local functions of '{path}' cannot be inlined: {error}", BROKEN_HINT) from error


def read_metadata(path: Path) -> dict[str, Any]:
    """What vitslim noted in the model-level metadata of an ONNX file: key without `vitslim.` to value.

    Values that are JSON come back decoded. Raises InputError as `load_onnx` does.
    """
    model = load_onnx(path)
    props = {prop.key: prop.value for prop in model.metadata_props}
    return {
        key.removeprefix(METADATA_PREFIX): _decoded(v) for key, v in props.items() if key.startswith(METADATA_PREFIX)
    }


def _decoded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
