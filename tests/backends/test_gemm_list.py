"""CSV files of GEMMs, and the statistics of prediction errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from vitslim.backends.gemm_errors import by_class, noise, rank_correlation, speedups
from vitslim.backends.gemm_list import Gemm, read_gemms, write_gemms
from vitslim.backends.measured.matmul_timing import measure_gemms
from vitslim.backends.registry import Measured, parse_backend
from vitslim.errors import InputError, UsageError
from vitslim.pipeline.bench.gemms import bench_gemms
from vitslim.progress import Silent

PAIRED = """gpu,dtype,M,N,K,dense_us,dense_tops,sparse24_us
X,FP16,64,128,256,10.0,1,12.0
X,BF16,64,128,256,10.5,1,12.6
X,INT8,4096,4096,4096,350,1,170
"""


def test_a_table_of_pairs_is_two_rows_each(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(PAIRED)
    gemms = read_gemms(path)
    assert gemms[:2] == [Gemm(64, 128, 256, "FP16", False, 1, 10.0), Gemm(64, 128, 256, "FP16", True, 1, 12.0)]
    assert len(gemms) == 6
    floor = noise(gemms)
    assert floor is not None
    assert floor.mean == pytest.approx(1 / 21)
    (fp16, bf16, int8, pooled) = speedups(gemms, np.array([9.0, 10, 9, 8, 300, 150]))
    assert (fp16.slowdowns, fp16.caught, bf16.caught, bf16.false_slowdowns) == (1, 1, 0, 0)
    assert (pooled.pairs, pooled.slowdowns, pooled.caught) == (3, 2, 1)
    assert int8.mean_error == pytest.approx(abs(2 / (350 / 170) - 1))


def test_written_lists_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    gemms = [Gemm(1, 2, 3), Gemm(4, 5, 6, "INT8", True, 7, 1.25)]
    write_gemms(gemms, path)
    assert read_gemms(path) == gemms
    write_gemms(gemms, path, [1.0, 2.0])
    assert read_gemms(path) == gemms
    assert "predicted_us" in path.read_text()


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("M,N\n1,2\n", UsageError, "no column K"),
        ("", UsageError, "no column M"),
        ("M,N,K\n", InputError, "contains no GEMMs"),
        ("M,N,K\n1,2,x\n", InputError, "line 2 of .* K is 'x'"),
        ("M,N,K\n1,2,0\n", InputError, "K is '0'"),
        ("M,N,K\n1,2,-3\n", InputError, "K is '-3'"),
        ("M,N,K\n1,2\n", InputError, "K is 'None'"),
        ("M,N,K,dtype\n1,2,3,FP12\n", InputError, "unknown dtype 'FP12'"),
        ("M,N,K,sparse\n1,2,3,maybe\n", InputError, "sparse is 'maybe'"),
        ("M,N,K,measured_us\n1,2,3,nan\n", InputError, "measured_us is 'nan'"),
        ("M,N,K,count\n1,2,3,99999999999\n", InputError, "count is"),
    ],
)
def test_wrong_lists(tmp_path: Path, text: str, error: type[Exception], words: str) -> None:
    path = tmp_path / "wrong.csv"
    path.write_text(text)
    with pytest.raises(error, match=words) as caught:
        read_gemms(path)
    assert caught.value.hint  # type: ignore[attr-defined]


def test_lists_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "noise.csv").write_bytes(b"M,N,K\n\xff\xfe\x00")
    for path in (tmp_path / "none.csv", tmp_path, tmp_path / "noise.csv"):
        with pytest.raises(InputError):
            read_gemms(path)


def test_rank_correlation_is_spearmans() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 9, 40).astype(float), generator.standard_normal(40)
    assert rank_correlation(a, a + b) == pytest.approx(spearmanr(a, a + b)[0])
    assert rank_correlation(a, np.ones(40)) == 0


def test_errors_by_class() -> None:
    gemms = [Gemm(1, 1, 1, measured_us=10.0), Gemm(1, 1, 1, sparse=True, measured_us=10.0), Gemm(1, 1, 1)]
    dense, sparse, pooled = by_class(gemms, np.array([11.0, 8.0, 5.0]))
    assert (dense.name, dense.mean, sparse.name, sparse.mean) == ("FP16 dense", pytest.approx(0.1), "FP16 2:4",
                                                                 pytest.approx(0.2))  # fmt: skip
    assert (pooled.rows, pooled.median) == (2, pytest.approx(0.15))


def test_a_simulated_backend_predicts_and_reports_errors(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text(PAIRED)
    result = bench_gemms(read_gemms(path), parse_backend("sim:a100"))
    assert {error.model for error in result.errors} == {"simulator", "roofline", "noise"}
    assert all(row.predicted_us and row.calibration for row in result.rows)
    array = bench_gemms([Gemm(197, 576, 192)], parse_backend("sim:systolic"))
    assert array.rows[0].predicted_us == pytest.approx(5.789 + (197 * 192 + 192 * 576 + 197 * 576) / 64e3, abs=2e-3)
    assert not array.errors


def test_a_measured_backend_returns_times() -> None:
    small, large = measure_gemms([Gemm(8, 64, 64, "FP32"), Gemm(256, 512, 512, "FP32")], 1, Silent())
    assert 0 < small < large
    with pytest.raises(UsageError, match="does not time FP16 2:4"):
        measure_gemms([Gemm(8, 8, 8, "FP16", True)], 1, Silent())


def test_a_runtime_without_gemm_timing_is_refused() -> None:
    backend = parse_backend("openvino:cpu")
    assert isinstance(backend, Measured)
    with pytest.raises(UsageError, match="GEMMs cannot be timed on openvino:cpu") as caught:
        backend.gemm_us([Gemm(8, 8, 8, "FP32")], 1, Silent())
    assert caught.value.hint == "use onnxruntime:cpu or torch:cuda"
