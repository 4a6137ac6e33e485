"""Write a graph as an ONNX file: graph passes, the exporter of PyTorch, ONNX passes, annotations, checks."""

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
import torch
from torch.export import Dim

from vitslim.errors import StageError
from vitslim.files import write_atomically
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.formats.file_form import BATCH, OPSET, FileForm
from vitslim.recipe.formats.profiles import PORTABLE, Profile
from vitslim.stages.export.annotate import LayerAnnotation, annotate, read_annotations
from vitslim.stages.export.graph_passes import run_graph_passes
from vitslim.stages.export.graph_passes.integer_weights import weight_storage
from vitslim.stages.export.onnx_passes import run_onnx_passes
from vitslim.stages.export.onnx_passes.fixed_batch import fix_batch
from vitslim.stages.export.onnx_passes.half_precision import overflows_of, plan_ranges
from vitslim.stages.export.onnx_passes.opset import plan_opset
from vitslim.stages.export.onnx_passes.weight_storage import plan_storage
from vitslim.stages.export.overflow import Overflow
from vitslim.stages.export.token_metadata import token_squeezes
from vitslim.stages.export.translate import translations
from vitslim.version import __version__
from vitslim.workload.onnx_file import read_metadata
from vitslim.workload.session import Floats

DEFAULT_FORM = FileForm()


@dataclass(frozen=True)
class ExportSummary:
    """A written file."""

    path: Path
    bytes: int
    annotations: tuple[LayerAnnotation, ...]
    """Every layer with a weight, in graph order."""
    overflows: tuple[Overflow, ...] = ()
    """Operators of a half-precision file that stay in float32."""

    @property
    def unquantized(self) -> tuple[str, ...]:
        """Names of the weights that stay in float."""
        return tuple(one.layer for one in self.annotations if not one.granularity)


def export_onnx(
    graph: ModelGraph,
    path: Path,
    profile: Profile = PORTABLE,
    class_names: Sequence[str] = (),
    form: FileForm = DEFAULT_FORM,
    images: Floats | None = None,
) -> ExportSummary:
    """Write a graph as one ONNX file; the form has its names, batch size and opset.

    Quantized weights are stored as integers and quantized activations get Q/DQ pairs, in the form of the profile.
    `class_names`, in the order of the class indices, become metadata of the file. `images`, float32 (n, C, H, W), show
    which operators exceed the range of half precision, if the profile has it. An existing file is replaced in one
    step, so a failure leaves it untouched. Raises StageError if the graph cannot be exported or the file breaks the
    ONNX standard, if the opset lacks an operator, InputError if it cannot be written.
    """
    copy = graph.copy()
    run_graph_passes(copy, profile)
    storage = weight_storage(copy, profile)
    model = _to_onnx(copy, form)
    if form.batch is not None:
        fix_batch(model, form.batch)
    plan_storage(model, storage)
    plan_opset(model, form.opset)
    if images is not None:
        plan_ranges(model, images, form.batch)
    run_onnx_passes(model, profile)
    annotations = annotate(model, graph, class_names, token_squeezes(graph, copy), form)
    _set_header(model, graph)
    data = _checked(ir.to_proto(model))
    write_atomically(path, data, "check the folder and its free space")
    return ExportSummary(path, len(data), annotations, overflows_of(model))


def read_summary(path: Path) -> ExportSummary:
    """Return the summary of a file that `export_onnx` wrote, but for its overflows.

    Raises InputError for a file that cannot be read.
    """
    return ExportSummary(path, path.stat().st_size, read_annotations(read_metadata(path)))


def _to_onnx(graph: ModelGraph, form: FileForm) -> ir.Model:
    """The result of PyTorch's exporter, not optimized: its constants are those of the graph."""
    module = graph.module.eval()
    example = torch.zeros(2, *graph.source.image)
    try:
        with _quiet():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=OPSET,
                input_names=[form.input_name],
                output_names=list(form.output_names(tuple(graph.source.outputs))),
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


def _set_header(model: ir.Model, graph: ModelGraph) -> None:
    model.producer_name, model.producer_version = "vitslim", __version__
    model.graph.name = graph.source.timm
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", model.opset_imports[""])])


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's log and its warnings about its own deprecations: users can act on neither."""
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
    """The serialized model with inferred shapes. Raises StageError if the ONNX checker rejects it."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageError(f"the exported model breaks the ONNX standard: {_first_cause(error)}") from error
    buffer = io.BytesIO()
    onnx.save(inferred, buffer)
    return buffer.getvalue()
