"""Estimate of a workload on SpAtten: attention layer by layer, then the fully connected layers on SpAtten-e2e."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitslim.backends.simulated.attention_layers import AttentionModel, read_attention_layers
from vitslim.backends.simulated.gemm_groups import not_modeled
from vitslim.backends.simulated.simulator import Floats
from vitslim.backends.simulated.spatten.fully_connected import FcGemm, fc_cycles, fc_gemms, fc_rows
from vitslim.backends.simulated.spatten.head_work import HeadWork, stated_counts, work_of_counts
from vitslim.backends.simulated.spatten.layer_time import LayerTime
from vitslim.backends.simulated.spatten.power import EnergyParts, energy_parts
from vitslim.backends.simulated.spatten.refined import refined_time
from vitslim.backends.simulated.spatten.released import released_time
from vitslim.backends.simulated.spatten.spec import SpattenSpec
from vitslim.results import Estimate, EstimateRow, Roofline
from vitslim.results.accelerator_counts import SpattenCounts
from vitslim.workload import Workload

CALIBRATION = {
    "released": "bert.cpp of mit-han-lab/spatten (equations)",
    "refined": "derived from the released model and the paper",
}
EXPECTED = {
    "released": "equal to bert.cpp without selection, 1 % with it; the paper is 15 to 20 % slower on BERT",
    "refined": "mean throughput within 25 % of the paper on GPT-2, 20 % on BERT",
}
FC_ERROR = "8 % on the published time of GPT-2-Medium"
GPU_NOTE = (
    "a GPU does not gain from this pruning at ViT lengths: a Triton port (Merlin0224/SpAtten) reaches 0.40x at 128 "
    "tokens, 0.54x at 1024, 1.15x at 2048"
)


def attention_time(work: HeadWork, spec: SpattenSpec) -> LayerTime:
    """Return the time of attention by the model that the settings name."""
    return released_time(work, spec) if spec.model == "released" else refined_time(work, spec)


def estimate(workload: Workload, counts: SpattenCounts | None, spec: SpattenSpec, backend: str) -> Estimate:
    """Return cycles, latency and energy of a workload; attention is the mean over the images of `counts`.

    Without counts they are stated by the settings. Norms, GELU and residual additions take no cycles; `settings` lists
    them under `not modeled`. Raises UsageError for a model without attention.
    """
    model = read_attention_layers(workload)
    stated = counts is None
    counts = counts or stated_counts(model, spec.approximation, spec.stated.refetch)
    work = work_of_counts(model, counts, spec)
    time = attention_time(work, spec)
    layer_flops = np.asarray(work.flops.sum(axis=2), np.float64)
    parts = energy_parts(time.cycles, layer_flops, time.dram_bytes, spec)
    gemms = fc_gemms(model, counts)
    sizes = np.array(list(fc_rows(gemms)), np.float64).reshape(-1, 3)
    rows = _attention_rows(model, time, layer_flops, parts, spec)
    rows += _fc_rows(gemms, sizes, spec)
    attention = sum(row.cycles or 0 for row in rows if row.op == "attention")
    total = sum(row.cycles or 0 for row in rows)
    to_ms = 1 / (spec.clock_ghz * 1e6)
    return Estimate(
        backend=backend,
        batch=workload.batch,
        cycles=total,
        latency_ms=total * to_ms,
        rows=tuple(rows),
        terms_ms={"attention": attention * to_ms, "fully connected on SpAtten-e2e": (total - attention) * to_ms},
        energy=_total_energy(parts, gemms, sizes, model.batch, spec).energy(spec),
        roofline=Roofline(peak_tops=spec.peak_tops, bandwidth_gbps=spec.dram_gbps, precision=f"int{spec.word_bits}"),
        settings=_settings(workload, work, time, attention, spec, stated),
        calibration=CALIBRATION[spec.model],
        expected_error=EXPECTED[spec.model],
        assumed=_assumed(spec, stated),
    )


def _attention_rows(
    model: AttentionModel, time: LayerTime, layer_flops: Floats, parts: EnergyParts, spec: SpattenSpec
) -> list[EstimateRow]:
    """Return a row for each attention: the mean over images, for the whole batch."""
    rows = []
    for i, layer in enumerate(model.layers):
        cycles = model.batch * float(time.cycles[:, i].mean())
        macs = model.batch * float(layer_flops[:, i].mean()) / 2
        busy = max(time.fill[:, i].mean(), 1.0) >= time.dram[:, i].mean()
        rows.append(EstimateRow(
            name=f"attention of {layer.name}", op="attention", count=1, macs=round(macs), cycles=round(cycles),
            latency_us=cycles / (spec.clock_ghz * 1e3),
            utilization=macs / max(1.0, cycles * (spec.qk_mult + spec.pv_mult)),
            bound="compute" if busy else "bandwidth",
            dram_bytes=round(model.batch * float(time.dram_bytes[:, i].mean())),
            energy_uj=1e3 * model.batch * float(parts.total[:, i].mean()), calibration=CALIBRATION[spec.model],
            expected_error=EXPECTED[spec.model],
        ))  # fmt: skip
    return rows


def _fc_rows(gemms: Sequence[FcGemm], sizes: Floats, spec: SpattenSpec) -> list[EstimateRow]:
    cycles, moved = fc_cycles(sizes, spec)
    energy = energy_parts(cycles, 2 * sizes.prod(axis=1), moved, spec).total
    peak = spec.qk_mult + spec.pv_mult
    return [
        EstimateRow(
            name=f"FC on SpAtten-e2e: {one.role} {one.m}x{one.n}x{one.k}", op="gemm", count=one.count, macs=one.macs,
            cycles=round(one.count * float(c)), latency_us=one.count * float(c) / (spec.clock_ghz * 1e3),
            utilization=one.m * one.n * one.k / max(1.0, float(c) * peak),
            bound="compute" if one.m * one.n * one.k / peak >= b / spec.bytes_per_cycle else "bandwidth",
            dram_bytes=round(one.count * float(b)), energy_uj=1e3 * one.count * float(e), calibration="derived",
            expected_error=FC_ERROR,
        )
        for one, c, b, e in zip(gemms, cycles, moved, energy, strict=True)
    ]  # fmt: skip


def _total_energy(
    parts: EnergyParts, gemms: Sequence[FcGemm], sizes: Floats, batch: int, spec: SpattenSpec
) -> EnergyParts:
    """Return the energy of attention, the mean over images times the batch, and of all fully connected layers."""
    counts = np.array([one.count for one in gemms], np.float64)
    cycles, moved = fc_cycles(sizes, spec)
    fc = energy_parts(cycles * counts, 2 * sizes.prod(axis=1) * counts, moved * counts, spec)
    return EnergyParts(*(
        np.append(batch * getattr(parts, name).mean(axis=0), getattr(fc, name)) for name in ("compute", "sram", "dram")
    ))  # fmt: skip


def per_image(workload: Workload, counts: SpattenCounts, spec: SpattenSpec) -> dict[str, Floats]:
    """Return values of each image at batch 1 by name, float64 (images,)."""
    model = read_attention_layers(workload)
    work = work_of_counts(model, counts, spec)
    time = attention_time(work, spec)
    gemms = fc_gemms(model, counts)
    sizes = np.array(list(fc_rows(gemms)), np.float64).reshape(-1, 3)
    sizes[:, 0] /= model.batch
    number = np.array([one.count for one in gemms], np.float64)
    cycles, moved = fc_cycles(sizes, spec)
    attention = time.cycles.sum(axis=1)
    parts = energy_parts(time.cycles, np.asarray(work.flops.sum(axis=2), np.float64), time.dram_bytes, spec)
    fc_energy = energy_parts(cycles * number, 2 * sizes.prod(axis=1) * number, moved * number, spec).total.sum()
    refetched = counts.refetched.sum(axis=(1, 2)) / np.maximum(1, counts.queries.sum(axis=(1, 2)))
    return {
        "attention cycles": attention,
        "cycles": attention + float((cycles * number).sum()),
        "attention DRAM bytes": time.dram_bytes.sum(axis=1),
        "attention energy, mJ": parts.total.sum(axis=1),
        "energy, mJ": parts.total.sum(axis=1) + float(fc_energy),
        "queries that read low bits, %": 100 * refetched,
    }


def effective_tflops(work: HeadWork, time: LayerTime, spec: SpattenSpec) -> float:
    """Return operations over time of attention, as the paper counts operations."""
    return float(work.flops.sum()) / float(time.cycles.sum()) * spec.clock_ghz / 1e3


def _settings(
    workload: Workload, work: HeadWork, time: LayerTime, attention: int, spec: SpattenSpec, stated: bool
) -> dict[str, str]:
    pq = spec.pq
    left_out = "value pruning, low bits and queries cost nothing; " if spec.model == "released" else ""
    return {
        "model": spec.model,
        "counts": "stated by the settings, no images" if stated else f"{work.queries.shape[0]} images",
        "attention only": f"{attention:,} cycles, {effective_tflops(work, time, spec):.3g} TFLOPS",
        "token pruning": f"{spec.token.pruning_ratio:g} per layer",
        "head pruning": f"{spec.head.pruning_ratio:g} per layer",
        "value pruning": f"{spec.value.pruning_ratio:g} per query",
        "bits": f"{pq.msb}+{pq.lsb}, threshold {pq.threshold:g}",
        "terms of attention": terms(time),
        "multipliers": f"{spec.qk_mult} + {spec.pv_mult}",
        "dram": f"{spec.channels} channels, {spec.dram_gbps:g} GB/s, efficiency {spec.dram_efficiency:g}",
        "on a GPU": GPU_NOTE,
        "not modeled": left_out + not_modeled(workload, ("softmax",)),
    }


def terms(time: LayerTime) -> str:
    """Return the mean cycles of an image by term; with `refined` the terms overlap."""
    parts = {"fill": time.fill, "DRAM": time.dram, "drain": time.drain, "selection": time.topk}
    return ", ".join(f"{name} {part.sum(axis=1).mean():,.0f}" for name, part in parts.items())


def _assumed(spec: SpattenSpec, stated: bool) -> tuple[str, ...]:
    found = ["energy.static_share", "fc.activation_bits", "dram_efficiency"]
    found += ["token.pruning_ratio"] if spec.token.is_active else []
    return (*found, "stated.refetch") if stated and spec.pq.lsb else tuple(found)
