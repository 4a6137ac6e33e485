"""Timing of single matmuls on ONNX Runtime."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from vitslim.backends.measured.matmul_timing import matmul_model, measure_matmuls, waiting_share
from vitslim.progress import Silent


def test_waiting_for_the_processor_is_noticed() -> None:
    assert waiting_share(lambda: time.sleep(0.05)) > 0.9
    assert 0 <= waiting_share(lambda: sum(range(100_000))) <= 1


def test_larger_matmuls_take_longer(small_model: Path) -> None:
    little, much = (1, 8, 64, 64), (1, 64, 512, 512)
    times = measure_matmuls([little, much, (2, 8, 64, 64)], small_model, 2, 1, "float32", Silent())
    assert times.ms[little] < times.ms[much]
    assert set(times.ms) == {little, much, (2, 8, 64, 64)}
    assert times.dense_ms > 0
    assert times.n >= 8


def test_models_of_one_matmul_multiply(tmp_path: Path) -> None:
    left, right = (np.random.default_rng(i).standard_normal((2, 3, 3), np.float32) for i in range(2))
    for inputs, weight in (({"a": left, "b": right}, None), ({"a": left}, right)):
        result = ReferenceEvaluator(onnx.load_from_string(matmul_model(inputs, weight))).run(None, inputs)[0]
        np.testing.assert_allclose(result, left @ right, rtol=1e-5)
