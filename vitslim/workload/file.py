"""Opening ONNX files, with errors that a person can act on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx.inliner import inline_local_functions

from vitslim.errors import InputError

METADATA_PREFIX = "vitslim."
BROKEN_HINT = "write the file again, for instance with the export stage of a recipe"


def check_onnx_file(path: Path) -> None:
    """Raise InputError when a path cannot be an ONNX file: missing, a folder, not readable, or empty."""
    if path.is_dir():
        raise InputError(f"'{path}' is a folder, not an ONNX file", "give the .onnx file inside it")
    try:
        with path.open("rb") as file:
            first = file.read(1)
    except FileNotFoundError as error:
        raise InputError(f"'{path}' does not exist", "give the path of an ONNX file") from error
    except OSError as error:
        raise InputError(f"'{path}' cannot be read: {error.strerror}", "check its permissions") from error
    if not first:
        raise InputError(f"'{path}' is empty", BROKEN_HINT)


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read a model with its weights; local functions are inlined.

    Raises InputError for a file that is missing, empty, truncated, or not ONNX, and for missing external weights.
    """
    check_onnx_file(path)
    try:
        model = onnx.load(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise InputError(f"'{path}' is not an ONNX file, or was cut off", BROKEN_HINT) from error
    if not model.ir_version or not model.graph.node or not model.graph.input or not model.graph.output:
        raise InputError(f"'{path}' holds no ONNX graph", BROKEN_HINT)
    _load_external_data(model, path)
    return inline_local_functions(model) if model.functions else model


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Weights may lie in a second file beside the model."""
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise InputError(f"the external weights of '{path}' cannot be read", "keep the data file beside it") from error


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
