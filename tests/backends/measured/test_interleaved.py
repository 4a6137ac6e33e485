"""Interleaved latency measurement on ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise, permutations
from pathlib import Path

import numpy as np
import pytest

from vitslim.backends.measured.rounds import median_interval, round_count, runs_per_round, shuffled, summarize
from vitslim.backends.registry import Measured
from vitslim.errors import InputError, UsageError
from vitslim.progress import Silent, T

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
    assert len(progress.labels) == 4
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


def test_summaries() -> None:
    own, baseline = [[1e-3, 1e-3], [2e-3, 4e-3], [1e-3, 1e-3]], [[2e-3], [9e-3], [4e-3]]
    result = summarize(own, baseline, "onnxruntime:cpu", 1, 1)
    assert (result.n, result.median_ms) == (6, 1.0)
    assert result.speedup == pytest.approx(3.0)
    assert result.spread_ms == pytest.approx(0.75)
    assert result.speedup_interval is not None
    assert 0 < result.speedup_interval[0] < 2.5
    assert result.speedup_interval[1] > 3.5
    assert summarize(own, None, "onnxruntime:cpu", 1, 1).speedup is None


@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_intervals_contain_the_true_ratio_of_equal_files(correlation: float) -> None:
    """Of 200 series of 60 rounds with slowly changing noise, about 95 % contain 1."""
    generator, contained, width = np.random.default_rng(1), 0, []
    for _ in range(200):
        steps = 0.05 * generator.standard_normal(60)
        for index in range(1, 60):
            steps[index] += correlation * steps[index - 1]
        low, high = median_interval(1 + steps)
        contained += low <= 1 <= high
        width.append(high - low)
    assert contained >= 0.91 * 200
    assert np.mean(width) < 0.065
    assert not low <= 1.2 <= high


def test_rounds() -> None:
    assert [runs_per_round(s) for s in (0.0, 1e-4, 0.007, 0.5)] == [5, 5, 2, 1]
    assert [round_count(1.0, s) for s in (0.0, 1e-5, 0.01, 10.0)] == [1000, 1000, 100, 5]


def test_every_file_runs_after_each_other_file_equally_often() -> None:
    """A file that makes the next one faster or slower affects all others alike."""
    order = [file for index in range(600) for file in shuffled("abc", index)]
    pairs = Counter(pairwise(order))
    expected = 600 * 2 / 6 + 600 / 9
    assert all(0.9 * expected < pairs[pair] < 1.1 * expected for pair in permutations("abc", 2))
    assert all(sorted(order[start : start + 3]) == list("abc") for start in range(0, len(order), 3))
