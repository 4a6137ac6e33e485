"""Estimate of a workload on FACT: one row for each block, and one for everything outside the blocks."""

from __future__ import annotations

import numpy as np

from vitslim.backends.simulated.attention_layers import AttentionModel, read_attention_layers
from vitslim.backends.simulated.fact.layer_work import LayerWork, layer_work, stated_counts, totals
from vitslim.backends.simulated.fact.spec import ASSUMED, IMAGE_KEYS, STATED, FactSpec, packaged_spec
from vitslim.backends.simulated.fact.timing import LayerCycles, energy_of, energy_parts, layer_cycles
from vitslim.backends.simulated.gemm_groups import not_modeled
from vitslim.backends.simulated.simulator import Floats
from vitslim.results import Estimate, EstimateRow, Roofline, Sensitivity
from vitslim.results.accelerator_counts import FactCounts
from vitslim.workload import Workload

CALIBRATION = "reconstructed from the abstract and secondary sources"
EXPECTED = "unknown: published figures contradict one another"
PUBLISHED_GOPS, PUBLISHED_CORE, PUBLISHED_LAYER = 928.0, 2754.0, 4388.0
"""GOPS of the chip, GOPS/W of 928 GOPS over 0.337 W of core power, and GOPS/W of a whole layer."""


def estimate(workload: Workload, counts: FactCounts | None, spec: FactSpec, backend: str) -> Estimate:
    """Return cycles, latency and energy of a workload, the mean over the images of `counts`.

    Without counts they are stated by the settings. Softmax, norms and GELU run on a unit that is not modeled. Raises
    UsageError for a model without attention.
    """
    model = read_attention_layers(workload)
    found = _evaluate(model, counts, spec)
    work, cycles, parts = found
    to_ms = model.batch / (spec.clock_ghz * 1e6)
    sums = totals((cycles.total, cycles.compute, cycles.prediction, cycles.dram))
    return Estimate(
        backend=backend,
        batch=model.batch,
        cycles=round(model.batch * sums[0]),
        latency_ms=sums[0] * to_ms,
        rows=tuple(_rows(model, work, cycles, parts, spec)),
        energy=energy_of(parts, model.batch, spec),
        roofline=Roofline(peak_tops=spec.peak_gops / 1e3, bandwidth_gbps=spec.dram_gbps, precision="int8"),
        settings=_settings(workload, found, counts, spec),
        calibration=CALIBRATION,
        expected_error=EXPECTED,
        assumed=_assumed(spec, counts is None),
        sensitivity=tuple(_sensitivity(model, counts, spec)),
    )


Evaluated = tuple[LayerWork, LayerCycles, dict[str, Floats]]


def _evaluate(model: AttentionModel, counts: FactCounts | None, spec: FactSpec) -> Evaluated:
    work = layer_work(model, counts or stated_counts(model, spec), spec)
    return work, layer_cycles(work, spec), energy_parts(work, spec)


def _rows(
    model: AttentionModel, work: LayerWork, cycles: LayerCycles, parts: dict[str, Floats], spec: FactSpec
) -> list[EstimateRow]:
    names = [*(layer.name for layer in model.layers), "outside the blocks"]
    rows = []
    for i, name in enumerate(names):
        total, compute, prediction, dram = (model.batch * float(one[:, i].mean()) for one in (
            cycles.total, cycles.compute, cycles.prediction, cycles.dram))  # fmt: skip
        rows.append(EstimateRow(
            name=name, op="block" if i < len(model.layers) else "gemm", count=1,
            macs=round(model.batch * float(work.dense_macs[:, i].mean())), cycles=round(total),
            latency_us=total / (spec.clock_ghz * 1e3), utilization=compute / max(1.0, total),
            bound="bandwidth" if dram >= max(compute, prediction) else "compute",
            dram_bytes=round(model.batch * float(work.dram_bytes[:, i].mean())),
            energy_uj=1e3 * model.batch * sum(float(part[:, i].mean()) for part in parts.values()),
            calibration="reconstructed", expected_error="unknown",
        ))  # fmt: skip
    return rows


def per_image(workload: Workload, counts: FactCounts, spec: FactSpec) -> dict[str, Floats]:
    """Return values of each image by name, float64 (images,)."""
    model = read_attention_layers(workload)
    work, cycles, parts = _evaluate(model, counts, spec)
    heads = np.array([layer.heads for layer in model.layers], np.float64)
    keys = np.array([layer.keys for layer in model.layers], np.float64)
    queries = np.array([layer.queries for layer in model.layers], np.float64)
    dense = work.dense_macs.sum(axis=1)
    return {
        "cycles": cycles.total.sum(axis=1),
        "effective MACs, % of dense": 100 * work.effective_macs(spec.low_rate).sum(axis=1) / dense,
        "energy, mJ": np.asarray(sum(part.sum(axis=1) for part in parts.values())),
        "attention entries, %": 100 * counts.entries.sum(axis=1) / float((heads * queries * keys).sum()),
        "K and V columns generated, %": 100 * counts.columns.sum(axis=1) / float((heads * keys).sum()),
        "Q rows generated, %": 100 * counts.rows.sum(axis=1) / float((heads * queries).sum()),
        "tokens with an INT8 MLP": counts.high_tokens.mean(axis=1),
    }


def _sensitivity(model: AttentionModel, counts: FactCounts | None, spec: FactSpec) -> list[Sensitivity]:
    """Return latency and energy at both ends of the plausible range of each assumed value."""
    found = []
    for key, (low, high) in spec.plausible.items():
        if counts is not None and key.startswith(IMAGE_KEYS):
            continue
        ends = [_latency_and_energy(model, counts, spec.with_value(key, value)) for value in (low, high)]
        found.append(Sensitivity(
            key=key, value=f"{spec.value(key)}", low=low, high=high, latency_low_ms=ends[0][0],
            latency_high_ms=ends[1][0], energy_low_mj=ends[0][1], energy_high_mj=ends[1][1],
        ))  # fmt: skip
    return found


def _latency_and_energy(model: AttentionModel, counts: FactCounts | None, spec: FactSpec) -> tuple[float, float]:
    _, cycles, parts = _evaluate(model, counts, spec)
    latency = model.batch * totals((cycles.total,))[0] / (spec.clock_ghz * 1e6)
    return latency, model.batch * sum(totals(tuple(parts.values())))


def _settings(workload: Workload, found: Evaluated, counts: FactCounts | None, spec: FactSpec) -> dict[str, str]:
    work, cycles, parts = found
    dense, effective, additions = totals((work.dense_macs, work.effective_macs(spec.low_rate), work.additions))
    seconds = totals((cycles.total,))[0] / (spec.clock_ghz * 1e9)
    operations = 2 * dense
    millijoules = dict(zip(parts, totals(tuple(parts.values())), strict=True))
    core = sum(millijoules[name] for name in ("compute", "prediction", "sram"))
    return {
        "status": "reconstructed",
        "counts": "stated by the settings, no images" if counts is None else f"{counts.entries.shape[0]} images",
        "MACs": f"{effective / dense:.1%} of the dense ones in INT8 time, additions of the predictor {additions:,.0f}",
        "cycles if alone": ", ".join(f"{name} {value:,.0f}" for name, value in zip(
            ("compute", "prediction", "DRAM"), totals((cycles.compute, cycles.prediction, cycles.dram)), strict=True)),
        "throughput": _against(operations / seconds / 1e9, PUBLISHED_GOPS, "GOPS", "dense operations, whole model"),
        "efficiency of the core": _against(operations / core / 1e6, PUBLISHED_CORE, "GOPS/W", "without DRAM"),
        "efficiency with DRAM": _against(
            operations / sum(millijoules.values()) / 1e6, PUBLISHED_LAYER, "GOPS/W", "published for a whole layer"),
        "out_of_order": "on" if spec.out_of_order else "off",
        "diagonal_storage": "on" if spec.diagonal_storage else "off",
        "not modeled": not_modeled(workload, ("softmax",)),
    }  # fmt: skip


def _against(value: float, published: float, unit: str, scope: str) -> str:
    return f"{value:,.0f} {unit}, {100 * (value / published - 1):+.0f} % of the published {published:g} ({scope})"


def _assumed(spec: FactSpec, stated: bool) -> tuple[str, ...]:
    """Return the assumed keys that have their packaged value, with the value."""
    default = packaged_spec()
    keys = ASSUMED + (STATED if stated else ())
    return tuple(f"{key} = {spec.value(key)}" for key in keys if spec.value(key) == default.value(key))
