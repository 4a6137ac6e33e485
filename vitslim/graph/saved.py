"""Save and load a graph without pickle: the source model and the edits as JSON, the tensors as safetensors.

Loading builds the source model without weights, replays the edits and then loads the tensors strictly, so a loaded
graph is equal to the saved one bit for bit.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from vitslim.errors import InputError
from vitslim.graph.edits import EDITS, Edit
from vitslim.graph.model_graph import ModelGraph, ModelSource
from vitslim.graph.trace import trace_timm
from vitslim.host_memory import require_memory

SCHEMA_VERSION = 4
GRAPH_FILE = "graph.json"
WEIGHTS_FILE = "weights.safetensors"
IMAGE_MAX = 8192
"""Largest height and width of an image in a saved graph."""
DOCUMENT_BYTES_MAX = 200_000_000
UNREPLAYABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError, OverflowError,
                ZeroDivisionError, AssertionError, MemoryError)  # fmt: skip
"""Exceptions of edits with values that do not fit the model."""
MASK_PREFIX = "vitslim.mask."


def save_graph(graph: ModelGraph, folder: Path) -> None:
    """Write `graph.json` and `weights.safetensors` into an existing folder."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in graph.module.state_dict().items()}
    tensors |= {MASK_PREFIX + name: mask.contiguous() for name, mask in graph.masks.items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    document = {
        "schema_version": SCHEMA_VERSION,
        "source": asdict(graph.source),
        "edits": [{"edit": type(edit).__name__, **edit.to_json()} for edit in graph.edits],
    }
    (folder / GRAPH_FILE).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def load_graph(folder: Path) -> ModelGraph:
    """Rebuild a saved graph.

    Raises InputError when a file is missing or corrupt, when it has an unknown edit, or when the installed timm builds
    another model than the saved one.
    """
    source, edits = _read_document(folder / GRAPH_FILE)
    tensors = _read_tensors(folder / WEIGHTS_FILE)
    masks = {name.removeprefix(MASK_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(MASK_PREFIX)}
    graph = trace_timm(source.timm, source.kwargs, task=source.task, preprocessing={"input_size": source.image})
    if (graph.source.image, graph.source.outputs) != (source.image, source.outputs):
        raise _another_model(source, folder, "its input or its outputs differ")
    graph.source = source
    for position, edit in enumerate(edits):
        try:
            graph = edit.replay(graph)
        except UNREPLAYABLE as error:
            message = f"edit {position} ({type(edit).__name__}) of '{folder / GRAPH_FILE}' does not fit its model"
            raise InputError(message, "the file is corrupt: run the recipe again") from error
    state = {name: tensor for name, tensor in tensors.items() if not name.startswith(MASK_PREFIX)}
    _load_strictly(graph, state, folder)
    graph.masks = masks
    return graph


def _read_document(path: Path) -> tuple[ModelSource, list[Edit]]:
    try:
        if path.stat().st_size > DOCUMENT_BYTES_MAX:
            raise InputError(f"'{path}' is larger than {DOCUMENT_BYTES_MAX // 10**6} MB", "is it a saved graph?")
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document["schema_version"]
        if version == SCHEMA_VERSION:
            return _source(document["source"]), [_edit(fields) for fields in document["edits"]]
    except FileNotFoundError as error:
        raise InputError(f"no saved graph in '{path.parent}'", f"'{GRAPH_FILE}' is missing there") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"'{path}' is not a saved graph", "the file is corrupt: run the recipe again") from error
    raise InputError(f"'{path}' has format {version!r}, this version reads {SCHEMA_VERSION}", "run the recipe again")


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        require_memory(path.stat().st_size, f"'{path}'")
        return load_file(path)
    except FileNotFoundError as error:
        raise InputError(f"'{path}' does not exist", "run the recipe again") from error
    except SafetensorError as error:
        raise InputError(f"'{path}' is not a valid safetensors file: {error}", "run the recipe again") from error


def _source(fields: dict[str, Any]) -> ModelSource:
    """Return the source of a saved graph. Raises ValueError for a field of another type."""
    source = TypeAdapter(ModelSource).validate_json(json.dumps(fields), strict=True)
    if not all(0 < size <= IMAGE_MAX for size in source.image):
        raise ValueError("not the shape of an image")
    kwargs = {key: tuple(value) if isinstance(value, list) else value for key, value in source.kwargs.items()}
    return replace(source, kwargs=kwargs)


def _edit(fields: dict[str, Any]) -> Edit:
    kind = fields["edit"]
    if kind not in EDITS:
        raise InputError(f"the saved graph has an edit '{kind}' that this version does not know", "update vitslim")
    return EDITS[kind].from_json({key: value for key, value in fields.items() if key != "edit"})


def _load_strictly(graph: ModelGraph, state: dict[str, torch.Tensor], folder: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in graph.module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        raise _another_model(graph.source, folder, f"{len(differing)} tensors differ, the first is '{differing[0]}'")
    graph.module.load_state_dict(state, strict=True)


def _another_model(source: ModelSource, folder: Path, difference: str) -> InputError:
    message = f"the installed timm builds another '{source.timm}' than the model saved in '{folder}' ({difference})"
    return InputError(message, "install the timm version that the lock file names")
