"""DRAM traffic, stalls and energy of the systolic target."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_systolic_estimate import deit_tiny_gemms

from vitslim.backends.simulated.energy import Work, load_table, parts_pj
from vitslim.backends.simulated.systolic.dram import dram_traffic
from vitslim.backends.simulated.systolic.estimate import estimate
from vitslim.backends.simulated.systolic.spec import SystolicSpec, load_spec
from vitslim.errors import UsageError

SIZES = st.integers(1, 3000)


DATAFLOWS = {dataflow: load_spec({"dataflow": dataflow}) for dataflow in ("ws", "os", "is")}


def traffic(
    m: int, n: int, k: int, sparse: bool = False, spec: SystolicSpec = DATAFLOWS["ws"]
) -> tuple[float, float, float]:
    found = dram_traffic(np.array([(m, n, k)]), np.array([sparse]), spec)
    return float(found.inputs[0]), float(found.weights[0]), float(found.outputs[0])


def test_operands_that_fit_move_once() -> None:
    assert traffic(197, 576, 192) == (197 * 192, 192 * 576, 197 * 576)


@pytest.mark.parametrize(("dataflow", "inputs", "weights"), [("ws", 24, 1), ("os", 24, 24), ("is", 1, 24)])
def test_operands_that_do_not_fit_move_for_every_fold(dataflow: str, inputs: int, weights: int) -> None:
    side = 24 * 128
    assert traffic(side, side, side, spec=DATAFLOWS[dataflow]) == (inputs * side**2, weights * side**2, side**2)


@given(SIZES, SIZES, SIZES, st.sampled_from(["ws", "os", "is"]))
def test_results_are_written_once(m: int, n: int, k: int, dataflow: str) -> None:
    assert traffic(m, n, k, spec=DATAFLOWS[dataflow])[2] == m * n


def test_two_four_weights_take_five_eighths() -> None:
    dense, sparse = (traffic(197, 576, 192, sparse)[1] for sparse in (False, True))
    assert sparse == 5 / 8 * dense


def test_overlap_hides_dram_and_bandwidth_shows() -> None:
    serial, slow, fast = (
        estimate(deit_tiny_gemms(), load_spec(changes))
        for changes in (
            {},
            {"overlap": "double_buffer", "dram_gbps": 4},
            {"overlap": "double_buffer", "dram_gbps": 1000},
        )
    )
    assert fast.stall_cycles == 0
    assert (slow.stall_cycles or 0) > 0
    assert {row.bound for row in slow.rows} == {"bandwidth"}
    assert {row.bound for row in fast.rows} == {"compute"}
    assert serial.cycles == 347_280
    for result in (serial, slow, fast):
        u = result.utilization
        assert u is not None
        assert 1 >= u.ideal >= u.with_stalls >= u.with_loading > 0
        assert result.latency_ms == pytest.approx(sum(result.terms_ms.values()))


def test_energy_is_the_sum_of_its_parts() -> None:
    result = estimate(deit_tiny_gemms(), load_spec({"energy": "horowitz45"}))
    energy = result.energy
    assert energy is not None
    assert energy.total_mj == pytest.approx(sum(energy.parts_mj.values()), rel=1e-9)
    assert energy.total_mj == pytest.approx(sum(row.energy_uj or 0 for row in result.rows) / 1e3, rel=1e-9)
    assert energy.parts_mj["compute"] == pytest.approx(1_224_589_824 * 0.3e-9)
    assert (energy.node, energy.mac_pj) == ("45 nm, 0.9 V", 0.3)
    assert max(energy.parts_mj, key=energy.parts_mj.__getitem__) == "dram"
    assert estimate(deit_tiny_gemms(), load_spec()).energy is None


def test_scalesim_counters_do_not_change_the_energy() -> None:
    clean, tool = (
        estimate(deit_tiny_gemms(), load_spec({"energy": "horowitz45", "counters": counters, "array": [32, 32]})).energy
        for counters in ("clean", "scalesim")
    )
    assert clean == tool


def test_half_the_weight_bits_halve_the_dram_energy_of_weights_only() -> None:
    wide, narrow = traffic(197, 576, 192), traffic(197, 576, 192, spec=load_spec({"bits": {"weight": 4}}))
    assert narrow == (wide[0], wide[1] / 2, wide[2])


def test_two_four_halves_the_energy_of_arithmetic() -> None:
    dense, sparse = (
        estimate(deit_tiny_gemms(sparsity), load_spec({"energy": "stc45"})).energy for sparsity in ("", "2:4")
    )
    assert dense is not None
    assert sparse is not None
    assert sparse.parts_mj["compute"] == dense.parts_mj["compute"] / 2
    assert sparse.parts_mj["dram"] > dense.parts_mj["dram"] / 2


@pytest.mark.parametrize("name", ["horowitz45", "jouppi7", "stc45", "zigzag"])
def test_no_work_takes_no_energy(name: str) -> None:
    table = load_table(name)
    assert table.source
    assert set(parts_pj(Work(0, 0, 0, 0, 0), table, 8, (512, 512, 256)).values()) == {0}
    assert load_table("jouppi7").assumed


def test_a_width_that_a_table_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="no 16-bit multiply") as caught:
        estimate(deit_tiny_gemms(), load_spec({"energy": "stc45", "bits": {"act": 16}}))
    assert caught.value.hint


def test_sram_between_the_sizes_of_a_table() -> None:
    table = load_table("horowitz45")
    assert table.sram(8) == pytest.approx(10)
    assert table.sram(4096) == pytest.approx(100)
    assert 20 < table.sram(256) < 100
