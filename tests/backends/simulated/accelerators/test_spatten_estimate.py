from __future__ import annotations

from dataclasses import replace
from time import process_time
from typing import Any

import numpy as np
import pytest
from vit_workloads import vit_workload

from vitslim.backends.registry import Simulated, parse_backend
from vitslim.backends.simulated.attention_layers import read_attention_layers
from vitslim.backends.simulated.simulator import ApproximatingSimulator
from vitslim.backends.simulated.spatten.fully_connected import fc_cycles
from vitslim.backends.simulated.spatten.head_work import stated_counts
from vitslim.backends.simulated.spatten.simulator import SpattenSimulator
from vitslim.backends.simulated.spatten.spec import load_spec
from vitslim.errors import UsageError
from vitslim.results.accelerator_counts import SpattenCounts
from vitslim.workload import Operator, Workload

PRUNED = {"token": {"pruning_ratio": 0.1}, "head": {"pruning_ratio": 0.2}, "value": {"pruning_ratio": 0.5}}

CASCADE = {"token": {"pruning_ratio": 0.1}, "head": {"pruning_ratio": 0.2}}


def simulator(**keys: Any) -> SpattenSimulator:
    backend = parse_backend({"sim": "spatten", **keys})
    assert isinstance(backend, Simulated)
    assert isinstance(backend.simulator, SpattenSimulator)
    return backend.simulator


def test_attention_of_dense_deit_tiny_takes_the_released_cycles() -> None:
    found = simulator().estimate(vit_workload())
    attention = sum(row.cycles or 0 for row in found.rows if row.op == "attention")
    assert attention == 180_636
    assert found.cycles is not None
    assert found.cycles > 5 * attention  # fully connected layers dominate a ViT
    assert found.latency_ms == pytest.approx(sum(found.terms_ms.values()))


def test_the_eighth_has_an_eighth_of_the_arrays_and_of_the_bandwidth() -> None:
    full, eighth = load_spec("spatten"), load_spec("spatten-1/8")
    assert (eighth.qk_mult, eighth.channels, eighth.dram_gbps) == (64, 2, 64)
    assert full.peak_tops == pytest.approx(2.048)
    assert eighth.peak_tops == full.peak_tops / 8


@pytest.mark.parametrize("model", ["released", "refined"])
def test_energy_is_the_sum_of_its_rows_and_parts(model: str) -> None:
    for batch in (1, 4):
        found = simulator(model=model, **PRUNED).estimate(vit_workload(batch=batch))
        assert found.energy is not None
        assert found.energy.table == "spatten40"
        assert sum(row.energy_uj or 0 for row in found.rows) / 1e3 == pytest.approx(found.energy.total_mj)


@pytest.mark.parametrize("change", [*PRUNED.items(), ("pq", {"msb": 4}), ("pq", {"lsb": 0})])
def test_each_approximation_lowers_the_energy_of_the_refined_model(change: tuple[str, Any]) -> None:
    dense, pruned = (simulator(model="refined", stated={"refetch": 1.0}, **keys).estimate(vit_workload())
                     for keys in ({}, {change[0]: change[1]}))  # fmt: skip
    assert dense.energy is not None
    assert pruned.energy is not None
    assert pruned.energy.total_mj < dense.energy.total_mj or change[0] == "value"


def test_the_released_model_charges_nothing_for_low_bits_and_values() -> None:
    plain = simulator().estimate(vit_workload())
    other = simulator(value={"pruning_ratio": 0.5}, stated={"refetch": 1.0}).estimate(vit_workload())
    assert other.cycles == plain.cycles
    assert "cost nothing" in plain.settings["not modeled"]


def test_the_refined_model_charges_low_bits_and_the_selection_of_values() -> None:
    base = simulator(model="refined", stated={"refetch": 0.0}).estimate(vit_workload()).cycles or 0
    low = simulator(model="refined", stated={"refetch": 1.0}).estimate(vit_workload()).cycles or 0
    values = simulator(model="refined", stated={"refetch": 0.0}, value={"pruning_ratio": 0.5}).estimate(vit_workload())
    assert low - base == pytest.approx(12 * 3 * 197 * 25)
    assert (values.cycles or 0) > base


def test_pruned_tokens_leave_projection_and_mlp() -> None:
    plain, pruned = (simulator(**keys).estimate(vit_workload()) for keys in ({}, {"token": {"pruning_ratio": 0.1}}))
    fc = [sum(row.macs for row in one.rows if row.op == "gemm") for one in (plain, pruned)]
    assert fc[1] < fc[0]
    model = read_attention_layers(vit_workload())
    counts = stated_counts(model, simulator(token={"pruning_ratio": 0.1}).approximation, 0.0)
    left = counts.tokens_after[0].tolist()
    assert left == [197, 197, 178, 160, 144, 130, 117, 105, 95, 85, 77, 77]
    assert counts.keys[0, :, 0].tolist() == [197, *left[:-1]]
    expected = sum(
        before * 3 * 192 * 192 + after * 9 * 192 * 192 for before, after in zip([197, *left], left, strict=False)
    )
    assert fc[1] == expected + 196 * 192 * 768 + 192 * 1000


def test_fully_connected_layers_of_gpt2_medium_take_about_the_published_time() -> None:
    sizes = np.array([[1.0, 1024 * 12, 1024]])
    cycles, _ = fc_cycles(sizes, load_spec("spatten"))
    assert 24 * 32 * float(cycles[0]) / 1e6 == pytest.approx(25.75, rel=0.1)


def images_of(number: int) -> SpattenCounts:
    """Counts of several images that differ in the queries that read low bits."""
    one = stated_counts(read_attention_layers(vit_workload()), simulator(**CASCADE).approximation, 0.0)
    many = SpattenCounts(*(np.repeat(getattr(one, name), number, axis=0) for name in one.__dataclass_fields__))
    low = np.minimum(many.queries, np.arange(number)[:, None, None])
    return replace(many, refetched=low)


def test_the_estimate_of_images_is_the_mean_over_them_and_fast() -> None:
    counts, refined = images_of(1000), simulator(model="refined", **CASCADE)
    start = process_time()
    found = refined.estimate(vit_workload(), counts)
    values = refined.per_image(vit_workload(), counts)
    assert process_time() - start < 0.5  # less than 0.1 s on an idle core
    assert found.cycles == pytest.approx(values["cycles"].mean(), abs=20)
    assert values["cycles"][-1] > values["cycles"][0]
    assert "1000 images" in found.settings["counts"]


def test_a_model_without_attention_is_refused() -> None:
    convolution = Operator("c", "conv", "Conv", m=10, n=10, k=10, weight=True, layer="c", role="c")
    with pytest.raises(UsageError, match="no attention"):
        simulator().estimate(Workload(1, (convolution,), 0, 0))


def test_heads_with_values_of_another_width_are_refused() -> None:
    work = vit_workload()
    narrow = tuple(replace(o, n=32) if o.role == "PV" else o for o in work.operators)
    with pytest.raises(UsageError, match="both must be equal"):
        simulator().estimate(replace(work, operators=narrow))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"token": {"pruning_ratio": 1.0}}, "token.pruning_ratio"),
        ({"token": {"pruning_ratio": 0.6, "start_ratio": 0.1}}, "the last layer would remove"),
        ({"token": {"pruning_ratio": 0.1, "start_ratio": 0.3}}, "the last layer would remove"),
        ({"tokens": {}}, "tokens: unknown key"),
        ({"pq": {"msb": 7}}, "pq.msb"),
        ({"dram_efficiency": 1.0}, "dram_efficiency"),
        ({"model": "exact"}, "model"),
    ],
)
def test_impossible_settings_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        simulator(**keys)


def test_the_schedule_interpolates_between_its_ratios_and_spares_the_first_layers() -> None:
    token = simulator(token={"pruning_ratio": 0.2, "start_ratio": 0.1}).approximation.token
    ratios = token.ratios(12)
    assert ratios[:2] == (0.0, 0.0)
    assert ratios[2] == pytest.approx(0.1)
    assert ratios[10] == pytest.approx(0.3)
    assert ratios[11] == 0.0
    assert sum(ratios) / 9 == pytest.approx(0.2)
    assert token.kept(10, 1) == (10,)


def test_both_targets_change_results_and_others_do_not() -> None:
    kinds = {name: parse_backend(f"sim:{name}") for name in ("spatten", "spatten-1/8", "fact", "a100", "systolic")}
    found = {name for name, one in kinds.items()
             if isinstance(one, Simulated) and isinstance(one.simulator, ApproximatingSimulator)}  # fmt: skip
    assert found == {"spatten", "spatten-1/8", "fact"}
