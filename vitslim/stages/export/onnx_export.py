"""From a graph to an ONNX file: export, fold, optimize, annotate, check, and only then put the file in its place."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch.export import Dim

import vitslim
from vitslim.errors import StageError
from vitslim.files import write_atomically
from vitslim.graph.decompose import decompose_attention
from vitslim.graph.edits.fake_quant import quantized_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.stages.export.annotate import LayerAnnotation, annotate
from vitslim.stages.export.graph_passes.lower import Target, lower_quantizers
from vitslim.stages.export.graph_passes.unused_tokens import compute_what_is_read
from vitslim.stages.export.onnx_passes.fold import (
    fold_gemm_biases,
    fold_transposes,
    keep_constants,
    part_zero_points,
    store_weights,
)
from vitslim.stages.export.onnx_passes.half import in_half_precision
from vitslim.stages.export.onnx_passes.integer_matmul import integer_products, relus_as_maxima, split_gemms
from vitslim.stages.export.translate import translations

OPSET = 21
IR_VERSION = 10
INPUT, OUTPUT, BATCH = "image", "logits", "batch"


@dataclass(frozen=True)
class ExportSummary:
    """What was written."""

    path: Path
    bytes: int
    opset: int
    annotations: tuple[LayerAnnotation, ...]
    """Every layer with a weight, in graph order."""
    unquantized: tuple[str, ...]
    """Names of the weights that stay in float."""


def export_onnx(
    graph: ModelGraph, path: Path, target: Target = "portable", class_names: Sequence[str] = ()
) -> ExportSummary:
    """Write a graph as one ONNX file (opset 21, IR 10, dynamic batch; input `image`, output `logits`).

    Quantized weights are stored as integers, inputs of quantized layers get Q/DQ pairs, both in the form that suits
    the target, and tokens that nothing reads are not computed. `class_names`, by class index, are noted in the file. An
    existing file is replaced in one step, so a failure leaves it untouched. Raises StageError when the graph cannot be
    exported or the file breaks the ONNX standard, InputError when it cannot be written.
    """
    copy = graph.copy()
    if target == "ort-cpu" or quantized_layers(graph.module):  # a float model is what others are compared with
        compute_what_is_read(copy)
    stored = lower_quantizers(copy, target)
    model = _exported(copy)
    split_gemms(model)
    fold_transposes(model)
    fold_gemm_biases(model)
    onnxscript.optimizer.optimize(model)
    keep_constants(model)
    store_weights(model, stored)
    part_zero_points(model)
    relus_as_maxima(model)
    if target == "ort-cpu":
        integer_products(model)
    model.graph.sort()  # constants that were folded last may stand behind what reads them
    if target == "fp16":
        model = in_half_precision(model)
    annotations = annotate(model, graph, class_names)
    model.producer_name, model.producer_version = "vitslim", vitslim.__version__
    model.graph.name = graph.source.timm
    model.ir_version = IR_VERSION
    data = _checked(ir.to_proto(model))
    write_atomically(path, data, "check the folder and its free space")
    unquantized = tuple(a.layer for a in annotations if a.granularity == "")
    return ExportSummary(path, len(data), OPSET, annotations, unquantized)


def _exported(graph: ModelGraph) -> ir.Model:
    """The exporter's model, not yet optimized: constants still stand where the graph has them. Changes the graph."""
    decompose_attention(graph)
    module = graph.module.eval()
    example = torch.zeros(2, *graph.source.image)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=({0: Dim(BATCH)},),
                custom_translation_table=translations(),
                optimize=False,
                verbose=False,
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise StageError(
            f"'{graph.source.timm}' cannot be exported to ONNX: {_first_cause(error)}",
            "check whether the uncompressed model exports",
        ) from error
    return program.model  # type: ignore[union-attr]  # None only without dynamo


def _first_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns about its own deprecations and logs each step; a person can act on neither."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _checked(proto: onnx.ModelProto) -> bytes:
    """The serialized model with inferred shapes, after the checker of onnx has found nothing wrong."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageError(f"the exported model breaks the ONNX standard: {_first_cause(error)}") from error
    buffer = io.BytesIO()
    onnx.save(inferred, buffer)
    return buffer.getvalue()
