"""Quantization of an ONNX file by ONNX Runtime and by NNCF, for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime import quantization
from onnxruntime.quantization.shape_inference import quant_pre_process

from vitslim.data import DataModule, Dataset
from vitslim.recipe.formats.file_form import INPUT

MATMULS = ["MatMul", "Gemm"]
STATIC_IMAGES = 64
"""Number of calibration images of `quantize_static`, which keeps the range of every activation of every image."""


def ort_static(
    dense: Path, path: Path, data: DataModule, options: dict[str, Any], count: int | None = STATIC_IMAGES
) -> None:
    """Quantize with `quantize_static` on at most `count` calibration images; None: on all of them."""
    images = _Reader(data.calibration.balanced(count), INPUT)
    quantization.quantize_static(str(_preprocessed(dense)), str(path), images, **options)


def tuned_static() -> dict[str, Any]:
    """Return the options of `quantize_static` that gave the best result: matmuls only, per channel, float outputs."""
    return {
        "per_channel": True, "op_types_to_quantize": MATMULS,
        "activation_type": quantization.QuantType.QUInt8, "weight_type": quantization.QuantType.QInt8,
        "extra_options": {"OpTypesToExcludeOutputQuantization": MATMULS, "MatMulConstBOnly": True},
    }  # fmt: skip


def ort_dynamic(dense: Path, path: Path) -> None:
    """Quantize with `quantize_dynamic`, per channel."""
    quantization.quantize_dynamic(
        str(_preprocessed(dense)), str(path), per_channel=True, op_types_to_quantize=MATMULS,
        weight_type=quantization.QuantType.QInt8, extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip


def nncf_quantize(dense: Path, path: Path, data: DataModule) -> None:
    """Quantize with NNCF for OpenVINO, on all calibration images."""
    import nncf

    images = [{INPUT: images.numpy()} for images, _ in data.calibration.batches(1)]
    quantized = nncf.quantize(
        onnx.load(dense), nncf.Dataset(images), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(images)
    )
    onnx.save(quantized, path)


def _preprocessed(dense: Path) -> Path:
    """Return the file after the preprocessing that ONNX Runtime's documentation recommends."""
    path = dense.with_name("prepared.onnx")
    if not path.exists():
        quant_pre_process(str(dense), str(path), skip_symbolic_shape=True)
    return path


class _Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, dataset: Dataset, name: str) -> None:
        self.batches = iter(dataset.batches(1))
        self.name = name

    def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
        """Return the next calibration image, None after the last."""
        found = next(self.batches, None)
        return None if found is None else {self.name: found[0].numpy()}
