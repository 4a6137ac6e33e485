"""Whole workloads on a simulated GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from workloads import block

from vitslim.backends.simulated.gpu.estimate import estimate
from vitslim.backends.simulated.gpu.simulator import GpuSimulator
from vitslim.backends.simulated.gpu.spec import load_gpu
from vitslim.workload import Kernel

A100 = load_gpu("a100")


def test_parts_add_up() -> None:
    result = estimate(block(64), A100)
    assert result.latency_ms == pytest.approx(sum(result.terms_ms.values()))
    assert 1e3 * result.latency_ms == pytest.approx(sum(row.latency_us for row in result.rows))
    assert result.energy is not None
    assert result.energy.total_mj == pytest.approx(sum(row.energy_uj or 0 for row in result.rows) / 1e3)
    assert result.energy.total_mj == pytest.approx(300 * 0.9 * result.latency_ms)
    assert sum(row.macs for row in result.rows) == block(64).macs
    assert result.kernels == 6
    assert result.cycles is None


def test_batch_1_is_bound_by_launches() -> None:
    result = estimate(block(), A100)
    assert {row.bound for row in result.rows if row.op == "gemm"} == {"launch"}
    assert result.terms_ms["launch"] > result.latency_ms / 2
    assert result.latency_ms * 1e3 > 6 * A100.launch.graph_gap_us
    large = estimate(block(256), A100)
    assert "launch" not in {row.bound for row in large.rows if row.op == "gemm"}


def test_eager_launches_every_operator() -> None:
    eager = load_gpu("a100", {"launch": {"mode": "eager"}})
    assert estimate(block(), eager).latency_ms * 1e3 == pytest.approx(7 * eager.launch.eager_us)
    assert estimate(block(256), eager).latency_ms < 1.1 * estimate(block(256), A100).latency_ms


def test_two_four_is_slower_at_batch_1_and_listed() -> None:
    dense, sparse = estimate(block(), A100), estimate(block(sparsity="2:4"), A100)
    assert sparse.latency_ms > dense.latency_ms
    assert "mlp.fc1" in sparse.settings["2:4 slower than dense"]
    raw = load_gpu("a100", {"two_four": {"copy_result": False}})
    wide = replace(block(), operators=tuple(replace(o, m=8192, n=4096, k=4096) if o.weight else o
                                            for o in block(sparsity="2:4").operators))  # fmt: skip
    assert estimate(wide, raw).latency_ms < estimate(wide, A100).latency_ms
    assert estimate(wide, raw).settings["2:4 slower than dense"] == "none"


def test_fewer_bits_and_tokens_are_not_slower() -> None:
    times = [estimate(block(64, bits), A100).latency_ms for bits in (4, 8, 16, 32)]
    assert times == sorted(times)
    shorter = [estimate(block(8, tokens=tokens), A100).latency_ms for tokens in (50, 99, 100, 197)]
    assert shorter == sorted(shorter)


def test_unknown_operators_are_timed_by_their_bytes() -> None:
    kernel = Kernel((), {16: 10**8}, {16: 10**8}, unknown="Det")
    workload = replace(
        block(), kernels=(*block().kernels, kernel), unknown={"Det": 1}, unknown_bytes={"Det": 4 * 10**8}
    )
    result = estimate(workload, A100)
    (row,) = [row for row in result.rows if row.op == "unknown"]
    assert row.latency_us > 4e8 / (1935 * 1e3)
    assert "unknown Det (1, 100.0 % of the bytes)" in result.settings["unknown operators, by their bytes"]


def test_every_row_has_a_calibration_and_an_expected_error() -> None:
    for chip, word in (("a100", "fitted"), ("h100", "uncalibrated")):
        result = estimate(block(), load_gpu(chip))
        gemms = [row for row in result.rows if row.op == "gemm"]
        assert all(word in row.calibration and row.expected_error for row in gemms)
        assert {row.calibration for row in result.rows} - {row.calibration for row in gemms} == {"assumed"}
        assert word in result.calibration


def test_int4_on_hopper_runs_as_int8() -> None:
    h100 = load_gpu("h100")
    four, eight = (estimate(block(64, bits), h100) for bits in (4, 8))
    assert "no INT4 instruction" in four.settings["int4"]
    assert four.latency_ms == eight.latency_ms


def test_matmuls_of_a_latency_table_are_timed_in_one_call() -> None:
    sizes = np.array([(1, 197, n, k) for k in range(64, 1024, 64) for n in range(64, 1024, 64)])
    ms = GpuSimulator("sim:a100", A100).matmul_ms(sizes)
    assert ms.shape == (len(sizes),)
    assert ms[0] < ms[-1]
