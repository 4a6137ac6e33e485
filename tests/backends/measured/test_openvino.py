"""OpenVINO against ONNX Runtime on an exported model; both are measured the same way."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from vitslim.backends.registry import Measured, parse_backend
from vitslim.errors import BackendUnavailableError, InputError, UsageError
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Silent
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.workload.session import OnnxModel

pytest.importorskip("openvino")

from vitslim.backends.measured.openvino import OpenVinoModel


def backend() -> Measured:
    found = parse_backend("openvino:cpu")
    assert isinstance(found, Measured)
    return found


@pytest.fixture(scope="module")
def vit(tiny_session_graph: ModelGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_onnx(tiny_session_graph, tmp_path_factory.mktemp("openvino") / "vit.onnx").path


def test_logits_are_those_of_onnx_runtime(vit: Path) -> None:
    images = np.random.default_rng(0).standard_normal((5, 3, 32, 32), np.float32)
    model, reference = OpenVinoModel(vit, 1), OnnxModel(vit, 1)
    for batch in (1, 5, 1):
        np.testing.assert_allclose(model(images[:batch]), reference(images[:batch]), atol=1e-4)


def test_latency_of_interleaved_files(vit: Path, small_model: Path) -> None:
    backend().require()
    results = backend().measure({"vit": vit, "small": small_model}, "vit", [1, 2], [1], 0.05, Silent())
    for name, measurements in results.items():
        assert [(m.backend, m.batch, m.threads) for m in measurements] == [("openvino:cpu", b, 1) for b in (1, 2)]
        assert all(m.n >= 5 and m.median_ms > 0 for m in measurements)
        assert all((m.speedup is None) == (name == "vit") for m in measurements)


def test_invalid_files_are_rejected(tmp_path: Path, small_model: Path) -> None:
    (tmp_path / "words.onnx").write_text("this is no model at all")
    (tmp_path / "cut.onnx").write_bytes(small_model.read_bytes()[:-100])
    (tmp_path / "empty.onnx").touch()
    for name in ("words.onnx", "cut.onnx", "empty.onnx", "missing.onnx", "."):
        with pytest.raises(InputError) as caught:
            OpenVinoModel(tmp_path / name)
        assert caught.value.hint


def test_latency_tables_are_refused(vit: Path) -> None:
    with pytest.raises(UsageError, match="cannot be measured on openvino:cpu"):
        backend().matmul_times([(1, 8, 8, 8)], vit, 1, 1, "float32", Silent())


def test_without_the_package(vit: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(BackendUnavailableError) as caught:
        OpenVinoModel(vit)
    assert caught.value.exit_code == 4
    assert "pip install openvino" in caught.value.hint
    with pytest.raises(BackendUnavailableError):
        backend().require()
