"""The closed form against the results of SCALE-Sim, and properties that hold for every size."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitslim.backends.simulated.systolic.cycles import (
    Array,
    compacted_k,
    compute_cycles,
    overall_utilization,
    sparse_sram_traffic,
    sram_traffic,
)

ROOT = Path(__file__).resolve().parents[4]
TABLE = Path(os.environ.get("VITSLIM_SHARED_DATA", ROOT.parent / "shared" / "data")) / "scalesim_calibration.csv"


@pytest.fixture(scope="module")
def scalesim_rows() -> list[dict[str, str]]:
    if not TABLE.is_file():
        pytest.skip("SCALE-Sim's results are not here (set VITSLIM_SHARED_DATA)")
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def array_of(row: dict[str, str]) -> Array:
    rows, columns = map(int, row["array"].split("x"))
    return Array(rows, columns, row["dataflow"])  # type: ignore[arg-type]


def sizes_of(row: dict[str, str]) -> tuple[int, int, int]:
    return int(row["M"]), int(row["N"]), int(row["K"])


def test_dense_rows_of_scalesim(scalesim_rows: list[dict[str, str]]) -> None:
    dense = [row for row in scalesim_rows if row["mode"] == "CALC"]
    assert {row["dataflow"] for row in dense} == {"ws", "os", "is"}
    for row in dense:
        array, sizes = array_of(row), sizes_of(row)
        cycles = compute_cycles(*sizes, array)
        traffic = sram_traffic(*sizes, array, "scalesim")
        assert cycles == int(row["compute_cycles"])
        assert 100 * overall_utilization(*sizes, array, cycles) == pytest.approx(
            float(row["overall_util_pct"]), abs=1e-3
        )
        assert traffic.input_reads == int(row["sram_ifmap_reads"])
        assert traffic.weight_reads == int(row["sram_filter_reads"])
        assert traffic.output_writes == int(row["sram_ofmap_writes"])


@pytest.mark.parametrize("mapping", ["layer", "row"])
def test_sparse_rows_of_scalesim(scalesim_rows: list[dict[str, str]], mapping: str) -> None:
    sparse = [row for row in scalesim_rows if row["mode"] == f"CALC-2:4-{mapping}"]
    assert len(sparse) == 12
    for row in sparse:
        array, (m, n, k) = array_of(row), sizes_of(row)
        kept = compacted_k(k, mapping)  # type: ignore[arg-type]
        cycles = compute_cycles(m, n, kept, array)
        traffic = sparse_sram_traffic(m, n, k, array, mapping, "scalesim")  # type: ignore[arg-type]
        utilization = 100 * overall_utilization(m, n, k, array, cycles)
        assert cycles == int(row["compute_cycles"])
        assert utilization == pytest.approx(float(row["overall_util_pct"]), abs=1e-3)
        assert traffic.input_reads == int(row["sram_ifmap_reads"])
        assert traffic.weight_reads == int(row["sram_filter_reads"])
        assert traffic.output_writes == int(row["sram_ofmap_writes"])


SIZES = st.integers(1, 600)
SIDES = st.integers(1, 40)
DATAFLOWS = st.sampled_from(["ws", "os", "is"])
ARRAYS = st.builds(Array, SIDES, SIDES, DATAFLOWS)


@given(SIZES, SIZES, SIZES, ARRAYS)
def test_cycles_never_fall_with_a_size(m: int, n: int, k: int, array: Array) -> None:
    cycles = compute_cycles(m, n, k, array)
    assert cycles <= compute_cycles(m + 1, n, k, array)
    assert cycles <= compute_cycles(m, n + 1, k, array)
    assert cycles <= compute_cycles(m, n, k + 1, array)


@given(SIZES, SIZES, SIZES, SIDES, SIDES)
def test_input_stationary_is_weight_stationary_with_m_and_n_swapped(m: int, n: int, k: int, r: int, c: int) -> None:
    assert compute_cycles(m, n, k, Array(r, c, "is")) == compute_cycles(n, m, k, Array(r, c, "ws"))


@given(SIZES, st.integers(1, 10), st.integers(1, 10), SIDES, SIDES)
def test_one_row_above_a_multiple_of_the_array_adds_one_set_of_folds(
    m: int, down: int, across: int, r: int, c: int
) -> None:
    array = Array(r, c, "ws")
    fold = 2 * r + c + m - 2
    full = compute_cycles(m, across * c, down * r, array)
    assert compute_cycles(m, across * c, down * r + 1, array) - full == across * fold
    assert compute_cycles(m, across * c + 1, down * r, array) - full == down * fold


@given(st.integers(1, 5000), st.integers(1, 7), st.integers(8, 16))
def test_any_pattern_reduces_k(k: int, kept: int, size: int) -> None:
    compact = compacted_k(k, "layer", (kept, size))
    assert k * kept / size <= compact < k * kept / size + 1
    assert compacted_k(k, "row", (kept, size)) == size * -(-k // (2 * size))


@given(SIZES, SIZES, ARRAYS, st.data())
def test_two_four_gains_nothing_when_k_fits_the_rows(m: int, n: int, array: Array, data: st.DataObject) -> None:
    array = Array(array.rows, array.columns, "ws")
    k = data.draw(st.integers(1, array.rows))
    assert compute_cycles(m, n, compacted_k(k, "layer"), array) == compute_cycles(m, n, k, array)


@given(SIZES, SIZES, SIZES, ARRAYS)
def test_clean_counters_read_back_partial_sums(m: int, n: int, k: int, array: Array) -> None:
    clean, tool = sram_traffic(m, n, k, array), sram_traffic(m, n, k, array, "scalesim")
    assert clean.output_writes - clean.output_reads == m * n
    assert clean.output_writes <= tool.output_writes
    assert tool.output_reads == 0


@given(SIDES, SIDES, DATAFLOWS)
def test_traffic_is_minimal_when_everything_fits_one_fold(r: int, c: int, dataflow: str) -> None:
    side = min(r, c)
    traffic = sram_traffic(side, side, side, Array(r, c, dataflow))  # type: ignore[arg-type]
    assert traffic.words == 3 * side * side


@given(SIZES, SIZES, SIZES, ARRAYS)
def test_utilization_is_positive(m: int, n: int, k: int, array: Array) -> None:
    if m * n * k > 1:
        cycles = compute_cycles(m, n, k, array)
        assert cycles == 0 or overall_utilization(m, n, k, array, cycles) > 0
