from __future__ import annotations

from dataclasses import replace
from time import process_time
from typing import Any

import pytest

from vitslim.backends.simulated.systolic.estimate import estimate
from vitslim.backends.simulated.systolic.spec import load_spec
from vitslim.workload import Operator, Workload


def deit_tiny_gemms(sparsity: str = "") -> Workload:
    """The six classes of GEMMs in the blocks of DeiT-Tiny at batch 1."""
    classes = (
        ("gemm", "qkv", 197, 576, 192, 12),
        ("attention", "QK^T", 197, 197, 64, 36),
        ("attention", "PV", 197, 64, 197, 36),
        ("gemm", "proj", 197, 192, 192, 12),
        ("gemm", "fc1", 197, 768, 192, 12),
        ("gemm", "fc2", 197, 192, 768, 12),
    )
    operators = tuple(
        Operator(role, op, "MatMul", m=m, n=n, k=k, count=count, sparsity=sparsity, role=role)  # type: ignore[arg-type]
        for op, role, m, n, k, count in classes
    )
    return Workload(batch=1, operators=operators, params=0, file_bytes=0)


TABLE = [
    ({"array": [128, 128], "dataflow": "ws"}, "", [5789, 1157, 1157, 2315, 6947, 6947], 347_280),
    ({"array": [128, 128], "dataflow": "os"}, "", [4459, 1271, 901, 1783, 5351, 4087], 266_352),
    ({"array": [128, 128], "dataflow": "is"}, "", [3831, 1157, 1783, 2295, 4599, 6887], 317_184),
    ({"array": [32, 32], "dataflow": "ws"}, "", [31_427, 4073, 4073, 10_475, 41_903, 41_903], 1_801_752),
    ({"array": [128, 128], "dataflow": "ws"}, "2:4", [2894, 1157, 578, 1157, 3473, 3473], 194_424),
    ({"array": [32, 32], "dataflow": "ws"}, "2:4", [15_713, 2036, 2327, 5237, 20_951, 20_951], 911_292),
]


@pytest.mark.parametrize(("changes", "sparsity", "each", "total"), TABLE)
def test_deit_tiny(changes: dict[str, Any], sparsity: str, each: list[int], total: int) -> None:
    result = estimate(deit_tiny_gemms(sparsity), load_spec(changes))
    assert [row.cycles // row.count for row in result.rows] == each
    assert result.cycles == total
    assert sum(row.macs for row in result.rows) == 1_224_589_824
    assert result.latency_ms == pytest.approx((total + result.stall_cycles) / 1e6)
    assert result.stall_cycles > 0
    assert "exact against SCALE-Sim" in result.expected_error
    assert "DRAM time derived" in result.expected_error


def test_utilization_of_the_table() -> None:
    result = estimate(deit_tiny_gemms(), load_spec())
    assert result.utilization is not None
    assert result.utilization.ideal == pytest.approx(0.215, abs=5e-4)


def test_layers_that_save_no_cycles_with_two_four_are_listed() -> None:
    result = estimate(deit_tiny_gemms("2:4"), load_spec())
    assert result.settings["2:4 without gain"] == "QK^T 197x197x64 2:4"


BASE = estimate(deit_tiny_gemms("2:4"), load_spec())


@pytest.mark.parametrize(
    "changes",
    [
        {"array": [64, 128]},
        {"dataflow": "os"},
        {"overlap": "double_buffer"},
        {"counters": "scalesim"},
        {"sparsity": "off"},
        {"sparsity": "row"},
        {"pattern": [3, 4]},
        {"pattern": [1, 4]},
        {"clock_ghz": 2.0},
    ],
)
def test_every_setting_changes_the_result(changes: dict[str, Any]) -> None:
    result = estimate(deit_tiny_gemms("2:4"), load_spec(changes))
    figures = (result.cycles, result.latency_ms, result.settings["sram_words"])
    assert figures != (BASE.cycles, BASE.latency_ms, BASE.settings["sram_words"])


def test_only_strictly_sequential_folds_are_called_exact() -> None:
    result = estimate(deit_tiny_gemms(), load_spec({"overlap": "double_buffer"}))
    assert result.cycles < 347_280
    assert result.calibration == "uncalibrated"
    assert "exact" not in result.expected_error


@pytest.mark.parametrize(
    ("op", "kind", "passes"),
    [
        ("softmax", "Softmax", 4),
        ("norm", "LayerNormalization", 3),
        ("elementwise", "Gelu", 2),
        ("elementwise", "Add", 1),
    ],
)
def test_vector_operators_have_rows_of_their_own(op: Any, kind: str, passes: int) -> None:
    extra = Operator("vector", op, kind, elements=1000)
    workload = replace(deit_tiny_gemms(), operators=(*deit_tiny_gemms().operators, extra, extra))
    result = estimate(workload, load_spec({"vector": {"lanes": 64}}))
    row = result.rows[-1]
    assert (row.op, row.count, row.macs) == (op, 2, 0)
    assert row.cycles == 2 * -(-1000 * passes // 64)
    assert result.cycles == 347_280 + row.cycles
    assert result.terms_ms["vector unit"] == pytest.approx((row.cycles or 0) / 1e6)
    assert "vector.passes" in result.assumed


def test_operators_without_cycles_are_listed() -> None:
    extra = (
        Operator("r", "movement", "Reshape", elements=10, read_bytes=40, written_bytes=40),
        Operator("t", "select", "TopK", elements=10),
    )
    workload = replace(
        deit_tiny_gemms(), operators=deit_tiny_gemms().operators + extra, unknown={"Det": 2}, unknown_bytes={"Det": 20}
    )
    result = estimate(workload, load_spec())
    assert result.cycles == 347_280
    assert result.settings["not modeled"] == "movement (1), select (1), unknown Det (2, 20.0 % of the bytes)"


def test_a_whole_model_takes_milliseconds() -> None:
    spec = load_spec()
    workload = replace(deit_tiny_gemms(), operators=100 * deit_tiny_gemms().operators)
    start = process_time()
    estimate(workload, spec)
    assert process_time() - start < 0.1
