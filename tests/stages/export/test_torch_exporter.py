"""Steps of PyTorch's exporter that are skipped where a graph does not need them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import pytest
import torch
from torch.export import ExportedProgram

from vitslim.errors import StageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.recipe.formats.file_form import FileForm
from vitslim.stages.export import torch_exporter
from vitslim.stages.export.onnx_passes.optimize import optimize
from vitslim.stages.export.torch_exporter import translated
from vitslim.workload.session import OnnxModel


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record the exports and the decompositions that run."""
    decompose, export, calls = ExportedProgram.run_decompositions, torch_exporter._export, list[str]()

    def run(program: ExportedProgram, table: Any = None) -> ExportedProgram:
        calls.append("decomposed")
        return decompose(program, table)

    with monkeypatch.context() as patch:
        patch.setattr(ExportedProgram, "run_decompositions", run)
        patch.setattr(torch_exporter, "_export", lambda *given: calls.append("exported") or export(*given))
        yield calls
        assert ExportedProgram.run_decompositions is run


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def logits(model: ir.Model, images: torch.Tensor, folder: Path) -> torch.Tensor:
    onnx.save(ir.to_proto(model), folder / "model.onnx")
    return torch.from_numpy(OnnxModel(folder / "model.onnx")(images.numpy()))


def test_a_transformer_is_not_decomposed_and_its_file_is_the_same(
    tiny_graph: ModelGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(monkeypatch) as calls:
        quick = translated(tiny_graph, FileForm())
        assert calls == ["exported"]
    monkeypatch.setattr(torch_exporter, "_quick", nullcontext)
    with counted(monkeypatch) as calls:
        whole = translated(tiny_graph, FileForm())
        assert calls == ["exported", "decomposed"]
    for model in (quick, whole):
        optimize(model)
    assert operators(quick) == operators(whole)
    images = torch.randn(3, 3, 32, 32)
    expected = tiny_graph.module(images).detach()
    for model in (quick, whole):
        torch.testing.assert_close(logits(model, images, tmp_path), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("is_known", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_batch_norms_are_decomposed_first_or_after_a_failure(
    is_known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its pooling is a mean, so that batch norms alone are decomposed.
    graph = trace_timm("test_resnet", {"num_classes": 10, "global_pool": "fast"})
    if not is_known:
        monkeypatch.setattr(torch_exporter, "_is_decomposed", lambda *_: False)
    with counted(monkeypatch) as calls:
        model = translated(graph, FileForm())
        assert calls == ["exported"] * (1 if is_known else 2) + ["decomposed"]
    images = torch.randn(2, *graph.source.image)
    expected = graph.module(images).detach()
    torch.testing.assert_close(logits(model, images, tmp_path), expected, rtol=0, atol=1e-4)


def test_an_operator_without_a_form_is_refused_by_name(tiny_graph: ModelGraph) -> None:
    gelu = next(node for node in tiny_graph.module.graph.nodes if node.target == torch.ops.aten.gelu.default)
    gelu.target, gelu.kwargs = torch.ops.aten.digamma.default, {}
    tiny_graph.module.recompile()
    with pytest.raises(StageError, match=r"'vit_tiny_patch16_224' cannot be exported to ONNX: .*digamma"):
        translated(tiny_graph, FileForm())
