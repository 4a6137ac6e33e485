"""The tensor-core model with its packaged constants: identities, bounds, and properties that hold for every size."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitslim.backends.gemm_errors import by_class, speedups
from vitslim.backends.gemm_list import Gemm, read_gemms
from vitslim.backends.simulated.gpu.gemm_times import gemm_provenance, gemm_us, roofline_us, widths
from vitslim.backends.simulated.gpu.spec import GPUS, GpuSpec, load_gpu
from vitslim.backends.simulated.gpu.tensor_core import Widths, gemm_time

ROOT = Path(__file__).resolve().parents[4]
TABLE = Path(os.environ.get("VITSLIM_SHARED_DATA", ROOT.parent / "shared" / "data")) / "a100_gemm_calibration.csv"

CHIPS = {chip: load_gpu(chip) for chip in GPUS}
A100 = CHIPS["a100"]
SIZES = st.integers(1, 20_000)
CLASSES = st.sampled_from([("FP16", False), ("FP16", True), ("INT8", False), ("INT8", True), ("INT4", False)])


def one(m: int, n: int, k: int, dtype: str = "FP16", sparse: bool = False, spec: GpuSpec = A100) -> float:
    return float(gemm_us([Gemm(m, n, k, dtype, sparse)], spec)[0])


@pytest.mark.parametrize(
    ("chip", "fp16", "int8", "int4"),
    [("a100", 311.9, 623.7, 1247.4), ("orin", 42.6, 85.2, 170.4), ("h100", 989.4, 1978.8, None),
     ("h200", 989.4, 1978.8, None)],
)  # fmt: skip
def test_peak_rates_are_the_published_ones(chip: str, fp16: float, int8: float, int4: float | None) -> None:
    spec = CHIPS[chip]
    assert spec.peak_tops("fp16") == pytest.approx(fp16, rel=1e-3)
    assert spec.peak_tops("fp16", sparse=True) == pytest.approx(2 * fp16, rel=1e-3)
    assert spec.peak_tops("int8") == pytest.approx(int8, rel=1e-3)
    assert (spec.peak_tops("int4") if spec.ops.int4 else None) == (int4 and pytest.approx(int4, rel=1e-3))


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, SIZES, CLASSES, st.sampled_from(GPUS))
def test_time_never_falls_with_a_size(m: int, n: int, k: int, kind: tuple[str, bool], chip: str) -> None:
    spec = CHIPS[chip]
    base = one(m, n, k, *kind, spec)
    for larger in ((m + 1, n, k), (m, n + 1, k), (m, n, k + 1), (2 * m, n, k), (m, 2 * n, k), (m, n, 2 * k)):
        assert one(*larger, *kind, spec) >= base * (1 - 1e-12)


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, SIZES, CLASSES)
def test_time_is_never_below_the_roofline(m: int, n: int, k: int, kind: tuple[str, bool]) -> None:
    gemm = Gemm(m, n, k, *kind)
    assert gemm_us([gemm], A100)[0] > roofline_us([gemm], A100)[0]


def test_a_batch_of_gemms_is_timed_as_single_gemms() -> None:
    generator = np.random.default_rng(0)
    gemms = [Gemm(*map(int, generator.integers(1, 5000, 3)), "INT8", bool(i % 2)) for i in range(50)]
    assert gemm_us(gemms, A100) == pytest.approx([gemm_us([g], A100)[0] for g in gemms])


def test_several_gemms_in_one_launch_fill_the_device() -> None:
    single, many = (gemm_us([Gemm(128, 128, 512, count=count)], A100)[0] for count in (1, 64))
    assert single < many < 8 * single


@pytest.mark.parametrize(("n", "k"), [(576, 192), (192, 192), (768, 192), (192, 768)])
def test_two_four_gains_nothing_on_deit_tiny_at_batch_1(n: int, k: int) -> None:
    assert one(197, n, k, sparse=True) >= one(197, n, k)


@pytest.mark.parametrize("side", [64, 128, 256])
def test_small_int8_gemms_are_not_slower_with_two_four(side: int) -> None:
    assert one(side, side, side, "INT8", True) <= one(side, side, side, "INT8")


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, st.integers(256, 20_000), st.booleans())
def test_more_bits_are_not_faster_above_the_floor(m: int, n: int, k: int, sparse: bool) -> None:
    """With results of the same width; shorter GEMMs are bound by the result that they write."""
    sizes = np.array([[1.0, m, n, k]])
    chip = A100.device()
    wide, narrow = (
        gemm_time(sizes, chip, A100.rate(p, sparse), A100.constants(p, sparse), Widths(b, b, 2)).total_us[0]
        for p, b in (("fp16", 2.0), ("int8", 1.0))
    )
    assert narrow <= wide or wide < 40


def test_long_gemms_run_at_a_lower_clock() -> None:
    sizes = np.array([[1, 1024, 1024, 1024], [1, 16384, 16384, 16384]], float)
    warm = A100.constants("fp16", False)
    cold = dataclasses.replace(warm, throttle=0.0)
    slow, fast = (
        gemm_time(sizes, A100.device(), A100.rate("fp16", False), c, Widths(2, 2, 2)).compute_us for c in (warm, cold)
    )
    share = slow / fast - 1
    assert 0 < share[0] < warm.throttle / 2 < share[1] < warm.throttle


def test_hopper_gains_nothing_from_int4() -> None:
    h100 = CHIPS["h100"]
    assert h100.runs_as(4) == "int8"
    assert A100.runs_as(4) == "int4"
    eight, four = (one(4096, 4096, 4096, dtype, spec=h100) for dtype in ("INT8", "INT4"))
    assert four == eight
    assert one(4096, 4096, 4096, "INT4") < 0.7 * one(4096, 4096, 4096, "INT8")


def test_calibration_and_expected_error_of_gemms() -> None:
    gemms = [Gemm(64, 64, 64, "FP16"), Gemm(64, 64, 64, "INT4")]
    (calibrated, error), (int4, _) = gemm_provenance(gemms, A100)
    assert "fitted" in calibrated
    assert "extrapolated" in error
    assert gemm_provenance([Gemm(1024, 4096, 4096)], A100)[0][1].endswith("% (mean, unseen shapes)")
    assert int4 == "uncalibrated"
    for chip in ("orin", "h100", "h200"):
        assert {label for label, _ in gemm_provenance(gemms, CHIPS[chip])} == {"uncalibrated"}
    assert not load_gpu("a100", {"dram_gbps": 1555}).calibrated
    assert load_gpu("a100", {"launch": {"graph_gap_us": 1}}).calibrated


def test_packaged_errors_on_unseen_shapes() -> None:
    errors = A100.calibration.errors
    pooled = errors["pooled"]
    assert (pooled.median <= 4, pooled.mean <= 7, pooled.p90 <= 20) == (True, True, True)
    for kind in ("FP16 dense", "BF16 dense", "INT8 dense", "FP16 2:4", "BF16 2:4", "INT8 2:4"):
        assert (errors[kind].median <= 6, errors[kind].mean <= 10, errors[kind].p90 <= 25) == (True, True, True)
    assert sum(e.rows for name, e in errors.items() if name != "pooled") == pooled.rows == A100.calibration.rows


def test_errors_on_measured_gemms() -> None:
    if not TABLE.is_file():
        pytest.skip("the measured GEMMs are not here (set VITSLIM_SHARED_DATA)")
    gemms = [g for g in read_gemms(TABLE) if max(g.m, g.n, g.k) < 65_536]
    assert len(gemms) == 738
    found = gemm_us(gemms, A100)
    pooled = by_class(gemms, found)[-1]
    plain = by_class(gemms, roofline_us(gemms, A100))[-1]
    assert pooled.median < 0.04
    assert pooled.mean < 0.07
    assert plain.mean > 0.3
    ratios = {one.name: one for one in speedups(gemms, found)}
    assert ratios["pooled"].rank_correlation > 0.7
    assert ratios["pooled"].caught >= ratios["pooled"].slowdowns / 2
    assert ratios["pooled"].false_slowdowns <= 0.02 * ratios["pooled"].pairs


def test_operands_that_stay_on_chip_move_no_bytes() -> None:
    size, ops, constants = np.array([[3.0, 197, 197, 64]]), A100.rate("fp16", False), A100.constants("fp16", False)
    with np.errstate(all="raise"):
        found = [gemm_time(size, A100.device(), ops, constants, Widths(*w)) for w in ((0, 0, 0), (2, 0, 0), (2, 2, 0))]
    memory = [float(time.memory_us[0]) for time in found]
    assert memory[0] == 0
    assert memory == sorted(memory)


def test_bytes_of_operands() -> None:
    assert widths(Gemm(1, 1, 1, "FP16", True), A100).weight == 2 * 9 / 16
    assert widths(Gemm(1, 1, 1, "INT8", True), A100).weight == 5 / 8
    assert widths(Gemm(1, 1, 1, "INT8"), A100).result == 4
