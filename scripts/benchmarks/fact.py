"""FACT (reconstructed) on DeiT-Tiny: accuracy against cycles and energy, ablation, sensitivity, and larger models.

Rows are kept in runs/fact-bench, so that an interrupted run continues; delete the folder to start again. Settings are
fixed in advance and judged on validation images and on one image of each of 500 ImageNet classes; one of them also
after training on training images without labels. Needs the folder that VITSLIM_SHARED_DATA names. About 40 minutes on
two idle cores, and an hour for the trained arm.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
from accelerator_arms import Bench, accelerator, prepare, within
from paths import RESULTS, RUNS
from result_file import write_result
from vit_shapes import SIZES, TOKENS, vit_workload

from vitslim.backends.simulated.attention_layers import read_attention_layers
from vitslim.results.accelerator_counts import FactCounts

FOLDER = RUNS / "fact-bench"
RESULT = RESULTS / "fact-deit-tiny.json"
IMAGES = 100
"""Training images of the ablation and of the sensitivity to the settings of the approximations."""


def setting(ratio: float = 0.2, margin: float | None = None, high: Any = 0.0, rate: int = 2) -> dict[str, Any]:
    """Return a backend with these settings of the approximations."""
    ep = {"topk_ratio": ratio, "onehot_margin": margin}
    return {"sim": "fact", "ep": ep, "ffn": {"hi_fraction": high, "int4_rate": rate}}


ARMS: dict[str, tuple[dict[str, Any], bool]] = {
    "INT8, all entries": (setting(1.0), False),
    "top-k 0.5": (setting(0.5), False),
    "top-k 0.3": (setting(0.3), False),
    "top-k 0.2": (setting(0.2), False),
    "top-k 0.2, one-hot 6": (setting(0.2, 6), False),
    "top-k 0.2, one-hot 3": (setting(0.2, 3), False),
    "top-k 0.5, INT4": (setting(0.5, None, "mean"), False),
    "top-k 0.3, INT4": (setting(0.3, None, "mean"), False),
    "default": ({"sim": "fact"}, False),
    "default, INT4 weights": (setting(0.2, 3, "mean", 4), False),
    "top-k 0.3, INT4, trained": (setting(0.3, None, "mean"), True),
}
"""Arm to its backend, and whether the model is trained under the approximations first."""
TIMED = ("INT8, all entries", "top-k 0.2", "default")
"""Arms whose evaluation is timed against the FP32 model."""

VARIED: dict[str, dict[str, Any]] = {
    "ep.topk_ratio 0.1": {"ep": {"topk_ratio": 0.1}},
    "ep.topk_ratio 0.3": {"ep": {"topk_ratio": 0.3}},
    "ep.onehot_margin 2": {"ep": {"onehot_margin": 2}},
    "ep.onehot_margin 5": {"ep": {"onehot_margin": 5}},
    "ffn.hi_fraction half of the mean": {"ffn": {"hi_fraction": 0.5 / 197}},
    "ffn.hi_fraction twice the mean": {"ffn": {"hi_fraction": 2 / 197}},
}
"""Settings of the approximations at the ends of their plausible range."""


def run() -> dict[str, float]:
    """Write scripts/results/fact-deit-tiny.json; return top-1, cycles and energy of each arm."""
    parts: dict[str, Any] = {"models": models()}
    bench = prepare(FOLDER)
    parts |= {"time_ratio": {name: bench.time_ratio(ARMS[name][0]) for name in TIMED}}
    parts |= {"ablation": ablation(bench), "sensitivity": sensitivity(bench), "rows": {}}
    for name, (backend, trained) in ARMS.items():
        parts["rows"][name] = bench.row(name, backend, trained)
        print(json.dumps({name: parts["rows"][name]}), flush=True)
        write_result(RESULT, **parts, within_one_point=within(parts["rows"]))
    print("at most one point lost:", ", ".join(within(parts["rows"])) or "none")
    keys = ("top1_val", "top1_samples", "cycles", "energy_mj", "model_ms")
    return {f"{name}: {key}": float(row[key]) for name, row in parts["rows"].items() for key in keys}


def _figures(bench: Bench, backend: dict[str, Any], counts: FactCounts) -> dict[str, float]:
    estimate = accelerator(backend).estimate(bench.workload, counts)
    return {"latency_ms": estimate.latency_ms, "energy_mj": estimate.energy.total_mj, "cycles": float(estimate.cycles)}


def ablation(bench: Bench) -> dict[str, Any]:
    """Return the effect of each block: the default, and the default without one of them."""
    base: dict[str, Any] = {"sim": "fact"}
    counts = bench.counts(base, IMAGES)
    assert isinstance(counts, FactCounts)
    layers = read_attention_layers(bench.workload).layers
    columns, rows = (np.broadcast_to([one.heads * tokens for one, tokens in zip(layers, each, strict=True)],
                                     counts.rows.shape)
                     for each in ([x.keys for x in layers], [x.queries for x in layers]))  # fmt: skip
    full = replace(counts, columns=columns, rows=rows)
    found = {"all blocks": _figures(bench, base, counts),
             "without K, V and Q skipping": _figures(bench, base, full)}  # fmt: skip
    for name, change in (
        ("without out-of-order scheduling", {"out_of_order": False}),
        ("without diagonal storage", {"diagonal_storage": False}),
    ):
        found[name] = _figures(bench, base | change, counts)
    for name, backend in (
        ("without top-k", setting(1.0, 3, "mean")), ("without one-hot rows", setting(0.2, None, "mean")),
        ("without INT4", setting(0.2, 3)), ("none of them", setting(1.0)),
    ):  # fmt: skip
        other = bench.counts(backend, IMAGES)
        assert isinstance(other, FactCounts)
        found[name] = _figures(bench, backend, other)
    return found


def sensitivity(bench: Bench) -> dict[str, Any]:
    """Return latency and energy over the plausible range of each assumed value, of the chip and of its decisions."""
    base: dict[str, Any] = {"sim": "fact"}
    counts = bench.counts(base, IMAGES)
    assert isinstance(counts, FactCounts)
    estimate = accelerator(base).estimate(bench.workload, counts)
    found: dict[str, Any] = {row.key: row.model_dump() for row in estimate.sensitivity}
    for name, change in VARIED.items():
        backend = base | change
        other = bench.counts(backend, IMAGES)
        assert isinstance(other, FactCounts)
        found[name] = _figures(bench, backend, other)
    return found


def models() -> dict[str, Any]:
    """Return larger models by stated counts: share of MACs in the MLP and in attention, latency, and gain over INT8."""
    found: dict[str, Any] = {}
    stated = {"stated": {"columns": 1.0, "rows": 1.0, "high": 1.0}}
    for name, size in SIZES.items():
        for tokens in TOKENS:
            workload = vit_workload(*size, tokens)
            dense, pruned = (accelerator(one).estimate(workload) for one in (setting(1.0) | stated, {"sim": "fact"}))
            share = {role: sum(o.macs for o in workload.operators if role in o.layer or o.role in role.split())
                     / workload.macs for role in ("mlp", "QK^T PV")}  # fmt: skip
            found[f"{name}, {tokens} tokens"] = {
                "mlp_share": share["mlp"], "attention_share": share["QK^T PV"], "latency_ms": pruned.latency_ms,
                "speedup_over_int8": dense.latency_ms / pruned.latency_ms, "energy_mj": pruned.energy.total_mj,
                "settings_of_target": pruned.settings,
            }  # fmt: skip
    return found
