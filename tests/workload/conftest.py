"""ONNX files to read: real timm models through torch's exporter, and small graphs written as text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import numpy_helper

Export = Callable[[str, dict[str, Any]], Path]


@pytest.fixture(scope="session")
def export_timm(tmp_path_factory: pytest.TempPathFactory) -> Export:
    """Exports a timm model in FP32 with a dynamic batch."""

    def export(name: str, kwargs: dict[str, Any]) -> Path:
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False, **kwargs).eval()
        size = kwargs.get("img_size", 224)
        path = tmp_path_factory.mktemp("onnx") / f"{name}.onnx"
        torch.onnx.export(
            model, (torch.zeros(2, 3, size, size),), dynamo=True, opset_version=21, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        ).save(path)  # fmt: skip
        return path

    return export


@pytest.fixture(scope="session")
def tiny_onnx(export_timm: Export, tiny_kwargs: dict[str, Any]) -> Path:
    return export_timm("vit_tiny_patch16_224", tiny_kwargs)


@pytest.fixture(scope="session")
def deit_tiny_onnx(export_timm: Export) -> Path:
    return export_timm("deit_tiny_patch16_224", {})


@pytest.fixture
def write_graph(tmp_path: Path) -> Callable[..., Path]:
    """Writes the body of a graph in ONNX's text form; keyword arguments are its constants."""

    def write(text: str, output: str = "float[N, O] y", **constants: np.ndarray | onnx.TensorProto) -> Path:
        header = '<ir_version: 10, opset_import: ["": 21, "com.microsoft": 1]>'
        model = onnx.parser.parse_model(f"{header} test (float[N, 8] x) => ({output}) {{ {text} }}")
        for name, value in constants.items():
            tensor = value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value)
            tensor.name = name
            model.graph.initializer.append(tensor)
        path = tmp_path / "graph.onnx"
        onnx.save(model, path)
        return path

    return write
