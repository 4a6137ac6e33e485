"""A model repository of Triton Inference Server: `NAME/1/model.onnx`, `NAME/config.pbtxt` and `NAME/labels.txt`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import onnx
from onnx import TensorProto

from vitslim.files import MODEL_FILE, LayoutFiles
from vitslim.stages.export.layouts.layout import ExportedModel

LABELS_FILE = "labels.txt"
TYPES: dict[int, str] = {
    TensorProto.FLOAT: "TYPE_FP32", TensorProto.FLOAT16: "TYPE_FP16", TensorProto.DOUBLE: "TYPE_FP64",
    TensorProto.INT64: "TYPE_INT64", TensorProto.INT32: "TYPE_INT32", TensorProto.UINT8: "TYPE_UINT8",
}  # fmt: skip


def triton_files(model: ExportedModel) -> LayoutFiles:
    """Return the files of a model repository with one model, called as the recipe.

    A dynamic batch allows at most the largest batch size of the report, and requests are batched dynamically. A fixed
    batch becomes a dimension of the tensors.
    """
    texts = {f"{model.name}/config.pbtxt": "\n".join(_config(model)) + "\n"}
    if model.labels:
        texts[f"{model.name}/{LABELS_FILE}"] = "".join(f"{' '.join(name.split())}\n" for name in model.labels)
    return LayoutFiles(f"{model.name}/1/{MODEL_FILE}", texts)


def _config(model: ExportedModel) -> Iterator[str]:
    graph = onnx.load(model.path, load_external_data=False).graph
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    is_dynamic = not batch.HasField("dim_value")
    yield f"name: {json.dumps(model.name)}"
    yield 'platform: "onnxruntime_onnx"'
    yield 'backend: "onnxruntime"'
    yield f"max_batch_size: {max(model.batches) if is_dynamic else 0}"
    yield from _tensors("input", graph.input, is_dynamic, "")
    yield from _tensors("output", graph.output, is_dynamic, LABELS_FILE if model.labels else "")
    if is_dynamic:
        yield "dynamic_batching { }"


def _tensors(field: str, values: Iterable[onnx.ValueInfoProto], is_dynamic: bool, labels: str) -> Iterator[str]:
    """Yield one entry for each tensor; dimensions of unknown size are -1, and a dynamic batch is left out."""
    for value in values:
        tensor = value.type.tensor_type
        sizes = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
        yield f"{field} {{"
        yield f"  name: {json.dumps(value.name)}"
        yield f"  data_type: {TYPES[tensor.elem_type]}"
        yield f"  dims: {json.dumps(sizes[1:] if is_dynamic else sizes)}"
        if labels:
            yield f"  label_filename: {json.dumps(labels)}"
        yield "}"
