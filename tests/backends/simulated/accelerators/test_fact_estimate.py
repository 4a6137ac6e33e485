from __future__ import annotations

from dataclasses import replace
from time import process_time
from typing import Any

import numpy as np
import pytest
from vit_workloads import vit_workload

from vitslim.backends.registry import Simulated, parse_backend
from vitslim.backends.simulated.attention_layers import read_attention_layers
from vitslim.backends.simulated.fact.layer_work import layer_work, stated_counts
from vitslim.backends.simulated.fact.simulator import FactSimulator
from vitslim.backends.simulated.fact.spec import ASSUMED, STATED, load_spec
from vitslim.errors import UsageError
from vitslim.results.accelerator_counts import FactCounts

DENSE: dict[str, Any] = {
    "ep": {"topk_ratio": 1.0, "onehot_margin": None},
    "ffn": {"hi_fraction": 0.0},
    "stated": {"columns": 1.0, "rows": 1.0, "high": 1.0},
}


def simulator(**keys: Any) -> FactSimulator:
    backend = parse_backend({"sim": "fact", **keys})
    assert isinstance(backend, Simulated)
    assert isinstance(backend.simulator, FactSimulator)
    return backend.simulator


def ratio(**keys: Any) -> float:
    """Dense over effective MACs of the blocks of DeiT-B."""
    spec, model = load_spec(keys), read_attention_layers(vit_workload(768, 12, 12))
    work = layer_work(model, stated_counts(model, spec), spec)
    return float(work.dense_macs[:, :-1].sum() / work.effective_macs(spec.low_rate)[:, :-1].sum())


def test_dense_settings_do_all_macs_and_predict_nothing() -> None:
    spec, model = load_spec(DENSE), read_attention_layers(vit_workload())
    work = layer_work(model, stated_counts(model, spec), spec)
    assert work.effective_macs(2).tolist() == work.dense_macs.tolist()
    assert work.dense_macs.sum() == vit_workload().macs
    assert work.additions.sum() == 0


@pytest.mark.parametrize(("rate", "high", "expected"), [(2, 0.3, 1.42), (4, 0.3, 1.69), (4, 0.2, 1.84)])
def test_the_worked_example_of_deit_base(rate: int, high: float, expected: float) -> None:
    found = ratio(ep={"topk_ratio": 0.21 / 0.9}, ffn={"int4_rate": rate}, stated={"high": high})
    assert found == pytest.approx(expected, abs=0.01)


def test_pruned_attention_alone_hardly_matters_at_197_tokens() -> None:
    found = ratio(ep={"topk_ratio": 0.21}, stated={"columns": 1.0, "rows": 1.0, "high": 1.0})
    assert found == pytest.approx(1.03, abs=0.01)


def test_additions_of_the_predictor_are_a_fifth_of_the_macs() -> None:
    spec, model = load_spec(), read_attention_layers(vit_workload(768, 12, 12))
    work = layer_work(model, stated_counts(model, spec), spec)
    assert work.additions.sum() / work.dense_macs[:, :-1].sum() == pytest.approx(0.18, abs=0.005)


@pytest.mark.parametrize("keys", [{}, DENSE, {"ffn": {"int4_rate": 4}}, {"n_ep": 64}, {"dram_gbps": 1.0}])
def test_no_block_of_the_design_slows_the_chip_down(keys: dict[str, Any]) -> None:
    work = vit_workload()
    best = simulator(**keys).estimate(work)
    for block in ("out_of_order", "diagonal_storage"):
        assert simulator(**keys, **{block: False}).estimate(work).latency_ms >= best.latency_ms


def test_peak_and_energy_floor() -> None:
    assert load_spec().peak_gops == 512
    for size in ((192, 12, 3, 197), (1024, 24, 16, 577)):
        for keys in ({}, {"operand_reuse": 512, "energy": {"scale_28nm": 0.01}}):
            work = vit_workload(*size, batch=8)
            energy = simulator(**keys).estimate(work).energy
            assert energy is not None
            assert energy.total_mj * 1e9 / (2 * work.macs) >= 0.228 * (1 - 1e-9)


def test_the_target_calls_itself_reconstructed_and_lists_assumed_keys() -> None:
    found = simulator().estimate(vit_workload())
    assert "reconstructed" in found.calibration
    assert [text.split(" = ")[0] for text in found.assumed] == [*ASSUMED, *STATED]
    own = simulator(mult=256).estimate(vit_workload())
    assert not any(text.startswith("mult =") for text in own.assumed)
    for key, published in (("throughput", "928"), ("efficiency of the core", "2754"), ("efficiency with DRAM", "4388")):
        assert f"of the published {published}" in found.settings[key]


def test_sensitivity_has_every_key_with_a_range_and_brackets_the_estimate() -> None:
    found = simulator().estimate(vit_workload())
    assert {row.key for row in found.sensitivity} == set(load_spec().plausible)
    mult = next(row for row in found.sensitivity if row.key == "mult")
    assert mult.latency_low_ms > mult.latency_high_ms == pytest.approx(found.latency_ms)
    counts = images_of(3)
    keys = {row.key for row in simulator().estimate(vit_workload(), counts).sensitivity}
    assert not any(key.startswith(("ep.", "stated.")) for key in keys)


def images_of(number: int) -> FactCounts:
    one = stated_counts(read_attention_layers(vit_workload()), load_spec())
    many = FactCounts(*(np.repeat(getattr(one, name), number, axis=0) for name in one.__dataclass_fields__))
    return replace(many, high_tokens=np.minimum(197, many.high_tokens + np.arange(number)[:, None]))


def test_the_estimate_of_images_is_the_mean_over_them_and_fast() -> None:
    counts, chip = images_of(1000), simulator()
    start = process_time()
    found = chip.estimate(vit_workload(), counts)
    assert process_time() - start < 0.5  # less than 0.1 s on an idle core
    assert found.cycles == pytest.approx(chip.per_image(vit_workload(), counts)["cycles"].mean(), abs=1)


def test_a_batch_reads_the_weights_of_small_models_once() -> None:
    one, four = (simulator().estimate(vit_workload(batch=batch)) for batch in (1, 4))
    assert one.energy is not None
    assert four.energy is not None
    assert four.energy.parts_mj["dram"] < 4 * one.energy.parts_mj["dram"]
    assert four.energy.parts_mj["compute"] == pytest.approx(4 * one.energy.parts_mj["compute"], rel=1e-3)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ep": {"topk_ratio": 0}}, "ep.topk_ratio"),
        ({"ffn": {"int4_rate": 3}}, "ffn.int4_rate"),
        ({"ffn": {"hi_fraction": "median"}}, "ffn.hi_fraction"),
        ({"plausible": {"mults": [1, 2]}}, "is not an assumed key"),
        ({"plausible": {"mult": [2, 1]}}, "2 exceeds 1"),
        ({"power": 1}, "power: unknown key"),
    ],
)
def test_impossible_settings_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        simulator(**keys)


def test_a_file_whose_layers_of_q_k_and_v_are_unknown_is_refused() -> None:
    work = vit_workload()
    odd = tuple(replace(o, n=100) if o.role.endswith("qkv") else o for o in work.operators)
    with pytest.raises(UsageError, match="are not found"):
        simulator().estimate(replace(work, operators=odd))
