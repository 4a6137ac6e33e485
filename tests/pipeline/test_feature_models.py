"""Published feature extractors and backbones, with random weights, from pruning to their ONNX file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from vitslim.graph.outputs import output_list
from vitslim.graph.saved import load_graph
from vitslim.pipeline.run.stored.artifact import Artifact
from vitslim.recipe import validate

PRUNE = {"prune": {"method": "depgraph", "pruning_ratio": 0.25, "importance": "taylor", "batches": 1, "batch": 2}}
DISTILL = {"distill": {"train": {"epochs": 1, "images": 4, "batch": 2}}}
QUANTIZE = {"quantize": {"method": "ptq"}}
WHOLE = [PRUNE, DISTILL, QUANTIZE, "export"]
WITHOUT_TRAINING = [PRUNE, QUANTIZE, "export"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_export")
@pytest.mark.parametrize(
    ("name", "kwargs", "stages", "outputs"),
    [
        ("vit_small_patch14_dinov2", {"img_size": 56}, WHOLE, ["features"]),
        ("vit_base_patch16_siglip_224", {"img_size": 64, "depth": 4}, WHOLE, ["features"]),
        (
            "swin_tiny_patch4_window7_224",
            {"features_only": True},
            WITHOUT_TRAINING,
            [f"features_{i}" for i in range(4)],
        ),
        ("convnext_tiny", {"features_only": True}, WITHOUT_TRAINING, [f"features_{i}" for i in range(4)]),
    ],
    ids=["dinov2", "siglip", "swin", "convnext"],
)
def test_a_published_feature_extractor_is_compressed(
    run_recipe: Callable[..., Artifact], tmp_path: Path, name: str, kwargs: Any, stages: Any, outputs: list[str]
) -> None:
    document = {
        "name": "features",
        "model": {"timm": name, "kwargs": kwargs},
        "data": {"kind": "digits", "calibration": 4, "eval_images": 4},
        "stages": stages,
        "report": {"backends": []},
        "gates": {"cosine_min": 0.5, "size_ratio_min": 2.0},
    }
    found = run_recipe(validate(document, "test"), tmp_path / "out")
    assert found.report.task == "features"
    assert all(gate.passed for gate in found.report.gates), found.report.gates
    session = onnxruntime.InferenceSession(found.onnx)
    assert [output.name for output in session.get_outputs()] == outputs
    graph = load_graph(found.folder)
    images = torch.randn(2, *graph.source.image, generator=torch.Generator().manual_seed(0))
    values = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        for value, expected in zip(values, output_list(graph.module(images)), strict=True):
            reference = expected.numpy().astype(float)
            assert 10 * np.log10((reference**2).sum() / ((reference - value) ** 2).sum()) > 20
    if len(outputs) > 1:
        assert {f"sqnr_db.{output}" for output in outputs} < found.report.final_accuracies[0].metrics.keys()
