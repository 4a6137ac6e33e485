"""Interleaved latency measurement on ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path
from shutil import copyfile
from typing import Any

import numpy as np
import pytest
from scipy import stats

from vitslim.backends.measured.interleaved import measure_interleaved
from vitslim.backends.measured.onnxruntime import ONNX_RUNTIME
from vitslim.backends.measured.rounds import BLOCKS, mean_interval, round_count, runs_per_round, shuffled, summarize
from vitslim.backends.registry import Measured
from vitslim.errors import InputError, UsageError
from vitslim.progress import Silent, T
from vitslim.workload.session import OnnxModel

ORT = Measured("onnxruntime:cpu")


class Recording(Silent):
    """Records the labels of progress bars."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def track(self, items: Iterable[T], label: str, total: int | None = None, images: int = 0) -> Iterator[T]:
        self.labels.append(label)
        return iter(items)


def test_a_faster_file_is_measured_as_faster(small_model: Path, large_model: Path) -> None:
    files = {"large": large_model, "small": small_model, "large again": large_model}
    progress = Recording()
    results = ORT.measure(files, "large", [1, 4], [1, 2], 0.1, progress)
    assert list(results) == list(files)
    assert progress.labels == ["onnxruntime:cpu: threads 1", "onnxruntime:cpu: threads 2"]
    for measurements in results.values():
        assert [(m.threads, m.batch) for m in measurements] == [(1, 1), (1, 4), (2, 1), (2, 4)]
        assert all(m.n >= 5 and m.median_ms > 0 and m.spread_ms >= 0 for m in measurements)
        assert all(m.backend == "onnxruntime:cpu" for m in measurements)
    assert all(m.speedup is None for m in results["large"])
    assert all(m.speedup is not None and m.speedup > 2 for m in results["small"])
    assert all(m.speedup is not None and 0.3 < m.speedup < 3 for m in results["large again"])


def test_invalid_files_are_rejected(tmp_path: Path, small_model: Path) -> None:
    whole = small_model.read_bytes()
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "words.onnx").write_text("this is no model at all")
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    for name in ("empty.onnx", "words.onnx", "cut.onnx", "missing.onnx", "."):
        with pytest.raises(InputError) as caught:
            ORT.measure({"bad": tmp_path / name}, "bad", [1], [1], 0.1, Silent())
        assert caught.value.exit_code == 5
        assert caught.value.hint


def test_an_unknown_baseline(small_model: Path) -> None:
    with pytest.raises(UsageError) as caught:
        ORT.measure({"dense": small_model}, "dens", [1], [1], 0.1, Silent())
    assert caught.value.hint == "did you mean 'dense'?"


def test_each_block_opens_the_files_anew_and_in_another_order(small_model: Path) -> None:
    opened, inputs = list[str](), list[float]()

    class Watched(OnnxModel):
        def convert(self, images: Any) -> Any:
            inputs.append(float(images[0].sum()))
            return super().convert(images)

    def open_model(path: Path, threads: int) -> OnnxModel:
        opened.append(path.stem)
        return Watched(path, threads)

    files = {name: small_model.with_name(f"{name}.onnx") for name in "abc"}
    for path in files.values():
        copyfile(small_model, path)
    runtime = replace(ONNX_RUNTIME, open_model=open_model)
    for again, expected in ((True, BLOCKS), (False, 1)):
        opened.clear()
        measure_interleaved(replace(runtime, reopens=again), files, "a", [1, 2], [1], 0.01, Silent())
        blocks = [opened[start : start + 3] for start in range(0, len(opened), 3)]
        assert len(blocks) == expected and all(sorted(block) == list("abc") for block in blocks)
        assert len({tuple(block) for block in blocks}) > 1 or expected == 1
    assert inputs and len({round(value, 3) for value in inputs}) == 1, "every file reads the same images"


def test_summaries() -> None:
    own = [[[1e-3, 1e-3], [2e-3, 4e-3]], [[1e-3, 1e-3]]]
    baseline = [[[2e-3], [9e-3]], [[4e-3]]]
    result = summarize(own, baseline, "onnxruntime:cpu", 1, 1)
    assert (result.n, result.median_ms) == (6, 1.0)
    assert result.speedup == pytest.approx((2.5 * 4) ** 0.5)
    assert result.spread_ms == pytest.approx(0.75)
    assert result.speedup_interval is not None
    low, high = result.speedup_interval
    assert low < 1 and high > 10, "two blocks tell little"
    assert low * high == pytest.approx(10)
    assert summarize(own, None, "onnxruntime:cpu", 1, 1).speedup is None


def test_intervals_of_normal_ratios_are_those_of_scipy() -> None:
    logs = np.array([0.1, 0.12, 0.07, 0.13, 0.11])
    expected = stats.t.interval(0.95, 4, logs.mean(), stats.sem(logs))
    mean, interval = mean_interval(np.exp(logs).tolist())
    assert np.log(mean) == pytest.approx(logs.mean())
    assert np.log(interval) == pytest.approx(expected)


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_intervals_contain_the_true_ratio_of_equal_files(correlation: float) -> None:
    """Of 400 series of 64 rounds with slowly changing noise and a deviation of each block, about 95 % contain 1."""
    generator, contained, width = np.random.default_rng(1), 0, []
    for _ in range(400):
        steps = 0.05 * generator.standard_normal(64)
        for index in range(1, 64):
            steps[index] += correlation * steps[index - 1]
        blocks = [np.median(block) + 0.01 * generator.standard_normal() for block in steps.reshape(BLOCKS, -1)]
        _, (low, high) = mean_interval([1 + value for value in blocks])
        contained += low <= 1 <= high
        width.append(high - low)
    assert contained >= 0.92 * 400
    assert np.mean(width) < 0.095
    assert not low <= 1.2 <= high


def test_rounds() -> None:
    assert [runs_per_round(s) for s in (0.0, 1e-4, 0.007, 0.5)] == [5, 5, 2, 1]
    assert [round_count(1.0, s) for s in (0.0, 1e-5, 0.01, 10.0)] == [200, 200, 100, 1]


def test_every_file_runs_after_each_other_file_equally_often() -> None:
    """A file that makes the next one faster or slower affects all others alike."""
    order = [file for index in range(600) for file in shuffled("abc", index)]
    pairs = Counter(pairwise(order))
    expected = 600 * 2 / 6 + 600 / 9
    assert all(0.9 * expected < pairs[pair] < 1.1 * expected for pair in permutations("abc", 2))
    assert all(sorted(order[start : start + 3]) == list("abc") for start in range(0, len(order), 3))
