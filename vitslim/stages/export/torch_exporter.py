"""PyTorch's ONNX exporter, without the steps that the graphs of vitslim do not need."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from typing import Any

import onnx_ir as ir
import torch
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram

from vitslim.errors import StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.recipe.formats.file_form import BATCH, OPSET, FileForm
from vitslim.stages.export.translate import translations

Decomposition = Mapping[Any, Callable[..., Any]]

NO_OWN_FORM = frozenset({torch.ops.aten.batch_norm.default})
"""Operators without an ONNX form that the table of decompositions lacks, because PyTorch decomposes them anyway."""


def translated(graph: ModelGraph, form: FileForm) -> ir.Model:
    """Return the ONNX model of a graph, not optimized: its constants are those of the graph.

    Raises StageError if the graph cannot be exported.
    """
    module = graph.module.eval()
    errors = (torch.onnx.errors.OnnxExporterError, RuntimeError)
    with suppress(*errors), _quick():
        return _export(module, graph, form)
    try:  # an operator may have an ONNX form only after its decomposition
        return _export(module, graph, form)
    except errors as error:
        raise StageError(
            f"'{graph.source.timm}' cannot be exported to ONNX: {first_cause(error)}",
            "check whether the uncompressed model exports",
        ) from error


def first_cause(error: BaseException) -> str:
    """Return the first line of the exception that caused an exception."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _export(module: torch.nn.Module, graph: ModelGraph, form: FileForm) -> ir.Model:
    with _quiet():
        program = torch.onnx.export(
            module,
            (torch.zeros(2, *graph.source.image),),
            dynamo=True,
            opset_version=OPSET,
            input_names=[form.input_name],
            output_names=list(form.output_names(tuple(graph.source.outputs))),
            dynamic_shapes=({0: Dim(BATCH)},),
            custom_translation_table=translations(),
            optimize=False,
            verbose=False,
        )
    return program.model  # type: ignore[union-attr]  # None only without dynamo


@contextmanager
def _quick() -> Iterator[None]:
    """Skip decompositions that change nothing, which trace the graph twice, and read the list of operators once."""
    decompose = ExportedProgram.run_decompositions

    def decompose_if_needed(program: ExportedProgram, table: Decomposition | None = None) -> ExportedProgram:
        is_done = table is not None and not any(_is_decomposed(node.target, table) for node in program.graph.nodes)
        return program if is_done else decompose(program, table)

    with ExitStack() as stack:
        stack.enter_context(_replaced(ExportedProgram, "run_decompositions", decompose_if_needed))
        with suppress(ImportError, AttributeError):  # private: other versions of PyTorch read the list each time
            from torch.onnx._internal.exporter._registration import onnxscript_apis  # type: ignore[attr-defined]

            read = onnxscript_apis.get_torchlib_ops
            stack.enter_context(_replaced(onnxscript_apis, "get_torchlib_ops", partial(_operators, read)))
        yield


def _is_decomposed(target: Any, table: Decomposition) -> bool:
    """Whether a decomposition replaces the operator, or makes it return its result in place of changing an input."""
    if target in table or target in NO_OWN_FORM:
        return True
    return isinstance(target, OpOverload) and target._schema.is_mutable


@cache
def _operators(read: Callable[[], Any]) -> Any:
    """The operators that have an ONNX form. To list them, the exporter parses the source of 500 functions."""
    return read()


@contextmanager
def _replaced(owner: Any, name: str, function: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, function)
    try:
        yield
    finally:
        setattr(owner, name, before)


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
