"""Write a graph as an ONNX file: graph passes, the exporter of PyTorch, ONNX passes, annotations, checks."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from vitslim.errors import StageError
from vitslim.files import write_atomically
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.formats.file_form import FileForm
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
from vitslim.stages.export.torch_exporter import first_cause, translated
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
    model = translated(copy, form)
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


def _set_header(model: ir.Model, graph: ModelGraph) -> None:
    model.producer_name, model.producer_version = "vitslim", __version__
    model.graph.name = graph.source.timm
    model.ir_version = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", model.opset_imports[""])])


def _checked(proto: onnx.ModelProto) -> bytes:
    """The serialized model with inferred shapes. Raises StageError if the ONNX checker rejects it."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        onnx.checker.check_model(inferred, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise StageError(f"the exported model breaks the ONNX standard: {first_cause(error)}") from error
    buffer = io.BytesIO()
    onnx.save(inferred, buffer)
    return buffer.getvalue()
