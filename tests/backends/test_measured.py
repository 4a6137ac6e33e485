from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from vitslim.backends.environment import cores, device_name, environment
from vitslim.backends.measured.onnxruntime import OnnxModel, measure_latency, run_onnx
from vitslim.backends.measured.products import measure_products, one_product, waiting_share
from vitslim.backends.measured.rounds import rotated, round_count, runs_per_round, summarize
from vitslim.errors import InputError, UsageError
from vitslim.progress import Silent, T


class Counting(Silent):
    """Counts what is tracked."""

    def __init__(self) -> None:
        self.labels: list[str] = []

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        self.labels.append(label)
        return iter(items)


def test_a_faster_file_is_measured_as_faster(small_model: Path, large_model: Path) -> None:
    files = {"large": large_model, "small": small_model, "large again": large_model}
    progress = Counting()
    results = measure_latency(files, "large", [1, 4], [1, 2], 0.1, progress)
    assert list(results) == list(files)
    assert len(progress.labels) == 4
    for measurements in results.values():
        assert [(m.threads, m.batch) for m in measurements] == [(1, 1), (1, 4), (2, 1), (2, 4)]
        assert all(m.n >= 5 and m.median_ms > 0 and m.spread_ms >= 0 for m in measurements)
        assert all(m.backend == "onnxruntime:cpu" for m in measurements)
    assert all(m.speedup is None for m in results["large"])
    assert all(m.speedup is not None and m.speedup > 2 for m in results["small"])
    assert all(m.speedup is not None and 0.3 < m.speedup < 3 for m in results["large again"])


def test_logits_are_those_of_the_reference(small_model: Path) -> None:
    images = np.random.default_rng(0).standard_normal((5, 3, 8, 8), np.float32)
    expected = ReferenceEvaluator(str(small_model)).run(None, {"x": images})[0]
    assert np.allclose(run_onnx(small_model, [images[:3], images[3:]]), expected, atol=1e-3)
    assert np.allclose(OnnxModel(small_model)(images), expected, atol=1e-3)


def test_bad_files_are_refused(tmp_path: Path, small_model: Path) -> None:
    whole = small_model.read_bytes()
    (tmp_path / "empty.onnx").touch()
    (tmp_path / "words.onnx").write_text("this is no model at all")
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    for name in ("empty.onnx", "words.onnx", "cut.onnx", "missing.onnx", "."):
        with pytest.raises(InputError) as caught:
            measure_latency({"bad": tmp_path / name}, "bad", [1], [1], 0.1, Silent())
        assert caught.value.exit_code == 5
        assert caught.value.hint


def test_an_unknown_operator_is_refused(tmp_path: Path, small_model: Path) -> None:
    model = onnx.load(small_model)
    model.graph.node[-1].op_type = "Strange"
    onnx.save(model, tmp_path / "strange.onnx")
    with pytest.raises(InputError, match="Strange"):
        OnnxModel(tmp_path / "strange.onnx")


def test_inputs_that_are_no_images(tmp_path: Path, small_model: Path) -> None:
    def changed(name: str, element: int, shape: list[int | str]) -> Path:
        model = onnx.load(small_model)
        model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("x", element, shape))
        onnx.save(model, tmp_path / name)
        return tmp_path / name

    fixed = changed("fixed.onnx", onnx.TensorProto.FLOAT, [2, 3, 8, 8])
    assert OnnxModel(fixed).input_shape(2) == (2, 3, 8, 8)
    with pytest.raises(InputError, match="fixed batch size of 2, not 1"):
        measure_latency({"a": fixed}, "a", [1], [1], 0.1, Silent())
    with pytest.raises(InputError, match="dynamic image size"):
        OnnxModel(changed("dynamic.onnx", onnx.TensorProto.FLOAT, ["N", 3, "H", "W"])).input_shape(1)


def test_integer_inputs_are_refused(tmp_path: Path) -> None:
    text = '<ir_version: 10, opset_import: ["": 21]> m (int64[N] x) => (int64[N] y) { y = Add(x, x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "ids.onnx")
    with pytest.raises(InputError, match="one float32 input"):
        OnnxModel(tmp_path / "ids.onnx")


def test_an_unknown_baseline(small_model: Path) -> None:
    with pytest.raises(UsageError) as caught:
        measure_latency({"dense": small_model}, "dens", [1], [1], 0.1, Silent())
    assert caught.value.hint == "did you mean 'dense'?"


def test_summaries() -> None:
    own, baseline = [[1e-3, 1e-3], [2e-3, 4e-3], [1e-3, 1e-3]], [[2e-3], [9e-3], [4e-3]]
    result = summarize(own, baseline, "onnxruntime:cpu", 1, 1)
    assert (result.n, result.median_ms) == (6, 1.0)
    assert result.speedup == pytest.approx(3.0)
    assert result.spread_ms == pytest.approx(0.75)
    assert result.speedup_spread == pytest.approx(1.0)
    assert summarize(own, None, "onnxruntime:cpu", 1, 1).speedup is None


def test_rounds() -> None:
    assert [runs_per_round(s) for s in (0.0, 1e-4, 0.007, 0.5)] == [5, 5, 2, 1]
    assert [round_count(1.0, s) for s in (0.0, 1e-5, 0.01, 10.0)] == [1000, 1000, 100, 5]
    assert [rotated("abc", i) for i in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_the_environment_names_processor_and_versions() -> None:
    here = environment()
    assert here.device == device_name() != ""
    assert here.cores == cores() >= 1
    assert {"vitslim", "onnxruntime", "torch", "numpy", "python"} <= set(here.versions)


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        ("model name\t: Xeon\nflags\t\t: avx2 avx512_vnni amx_int8\n\nmodel name\t: second\n", "Xeon (AMX)"),
        ("model name\t: EPYC\nflags\t\t: avx2 avx512f avx512_vnni\n", "EPYC (AVX512-VNNI)"),
        ("model name\t: EPYC\nflags\t\t: sse4_2 avx2 avx512f\n", "EPYC (AVX2)"),
        ("Features\t: fp asimddp\nHardware\t: Graviton\n", "Graviton (SDOT)"),
        ("model name\t: old\nflags\t\t: sse2\n", "old"),
    ],
)
def test_a_processor_is_named_with_its_instructions_for_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: str, name: str
) -> None:
    (tmp_path / "cpuinfo").write_text(facts)
    monkeypatch.setattr("vitslim.backends.environment.CPU_INFO", tmp_path / "cpuinfo")
    assert device_name() == name


def test_backends_start_without_torch() -> None:
    code = "import sys, vitslim.backends.registry, vitslim.backends.environment; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


def test_weights_in_half_precision(tmp_path: Path) -> None:
    """A file whose weights are FP16 but whose input is float runs as well."""
    text = """<ir_version: 10, opset_import: ["": 21]> m (float[N, 4] x) => (float[N, 2] y)
    { f = Cast<to = 1>(w)  y = MatMul(x, f) }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((4, 2), np.float16), "w"))
    onnx.save(model, tmp_path / "half.onnx")
    assert run_onnx(tmp_path / "half.onnx", [np.ones((3, 4), np.float32)]).tolist() == [[4.0, 4.0]] * 3


def test_waiting_for_the_processor_is_noticed() -> None:
    assert waiting_share(lambda: time.sleep(0.05)) > 0.9
    assert 0 <= waiting_share(lambda: sum(range(100_000))) <= 1


def test_single_products_take_their_time(small_model: Path) -> None:
    little, much = (1, 8, 64, 64), (1, 64, 512, 512)
    times = measure_products([little, much, (2, 8, 64, 64)], small_model, 2, 1, Silent())
    assert times.ms[little] < times.ms[much]
    assert set(times.ms) == {little, much, (2, 8, 64, 64)}
    assert times.dense_ms > 0
    assert times.n >= 8


def test_one_product_models_multiply(tmp_path: Path) -> None:
    left, right = (np.random.default_rng(i).standard_normal((2, 3, 3), np.float32) for i in range(2))
    for inputs, weight in (({"a": left, "b": right}, None), ({"a": left}, right)):
        result = ReferenceEvaluator(onnx.load_from_string(one_product(inputs, weight))).run(None, inputs)[0]
        np.testing.assert_allclose(result, left @ right, rtol=1e-5)
