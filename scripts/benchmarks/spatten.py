"""SpAtten on DeiT-Tiny: accuracy against cycles and energy, sequence workloads, and larger models.

Rows are kept in runs/spatten-bench, so that an interrupted run continues; delete the folder to start again. Settings
are fixed in advance and judged on validation images and on one image of each of 500 ImageNet classes; two of them also
after training on training images without labels. Needs the folder that VITSLIM_SHARED_DATA names. About half an hour
on two idle cores, and an hour for each trained arm.
"""

from __future__ import annotations

import json
from typing import Any

from accelerator_arms import Bench, accelerator, prepare, within
from paths import RESULTS, RUNS, require_shared
from result_file import write_result
from vit_shapes import SIZES, TOKENS, vit_workload

FOLDER = RUNS / "spatten-bench"
RESULT = RESULTS / "spatten-deit-tiny.json"
TABLES = {"baseline": "summary-gpt2-small-wikitext2-per8-step1+dedic.csv",
          "pruned": "summary-gpt2-small-wikitext2-per8.csv"}  # fmt: skip


def setting(msb: int = 8, lsb: int = 4, **ratios: float) -> dict[str, Any]:
    """Return a backend with these bits and pruning ratios of tokens, heads and values."""
    pruned = {axis: {"pruning_ratio": ratio} for axis, ratio in ratios.items()}
    return {"sim": "spatten", "model": "refined", "pq": {"msb": msb, "lsb": lsb}, **pruned}


ARMS: dict[str, tuple[dict[str, Any], bool]] = {
    "12 bits": (setting(12, 0), False),
    "8+4 bits": (setting(), False),
    "6+4 bits": (setting(6), False),
    "4+4 bits": (setting(4), False),
    "8+4, values 0.5": (setting(value=0.5), False),
    "8+4, tokens 0.02": (setting(token=0.02), False),
    "8+4, tokens 0.05": (setting(token=0.05), False),
    "8+4, tokens 0.1": (setting(token=0.1), False),
    "8+4, heads 0.05": (setting(head=0.05), False),
    "6+4, tokens 0.05, values 0.3": (setting(6, token=0.05, value=0.3), False),
    "8+4, tokens 0.05, trained": (setting(token=0.05), True),
    "8+4, tokens 0.1, trained": (setting(token=0.1), True),
}
"""Arm to its backend, and whether the model is trained under the approximations first."""
TIMED = ("8+4 bits", "8+4, tokens 0.05", "6+4, tokens 0.05, values 0.3")
"""Arms whose evaluation is timed against the FP32 model."""


def run() -> dict[str, float]:
    """Write scripts/results/spatten-deit-tiny.json; return top-1, cycles of attention and energy of each arm."""
    parts: dict[str, Any] = {"sequences": sequences(), "models": models()}
    bench = prepare(FOLDER)
    parts |= {
        "dense": dense_row(bench),
        "time_ratio": {name: bench.time_ratio(ARMS[name][0]) for name in TIMED},
        "rows": {},
    }
    for name, (backend, trained) in ARMS.items():
        parts["rows"][name] = bench.row(name, backend, trained) | released(bench, backend)
        print(json.dumps({name: parts["rows"][name]}), flush=True)
        write_result(RESULT, **parts, within_one_point=within(parts["rows"]))
    print("at most one point lost:", ", ".join(within(parts["rows"])) or "none")
    keys = ("top1_val", "top1_samples", "cycles", "energy_mj", "model_ms")
    return {f"{name}: {key}": float(row[key]) for name, row in parts["rows"].items() for key in keys}


def released(bench: Bench, backend: dict[str, Any]) -> dict[str, Any]:
    """Return the cycles of attention by the released model, which the settings state."""
    found = accelerator({**backend, "model": "released"}).estimate(bench.workload)
    return {"released_attention_cycles": sum(row.cycles for row in found.rows if row.op == "attention")}


def dense_row(bench: Bench) -> dict[str, Any]:
    """Return the dense model on other targets, whole model: nothing here is attention alone."""
    found = {}
    for backend in ({"sim": "a100"}, {"sim": "systolic", "energy": "horowitz45"}):
        estimate = accelerator(backend).estimate(bench.workload)
        found[backend["sim"]] = {"latency_ms": estimate.latency_ms, "energy_mj": estimate.energy.total_mj}
    return found


def sequences() -> dict[str, Any]:
    """Return throughput, terms and energy split of the GPT-2-small tables in both models."""
    found: dict[str, Any] = {}
    for name, file in TABLES.items():
        path = require_shared("spatten") / file
        for model in ("released", "refined"):
            estimate = accelerator({"sim": "spatten", "model": model}).estimate_sequences(path)
            found[f"{name}, {model}"] = estimate.settings | {
                "cycles": estimate.cycles, "energy_parts_mj": estimate.energy.parts_mj}  # fmt: skip
    return found


def models() -> dict[str, Any]:
    """Return the share of attention in the latency of larger models, by stated counts."""
    found: dict[str, Any] = {}
    for name, size in SIZES.items():
        for tokens in TOKENS:
            workload = vit_workload(*size, tokens)
            for label, backend in (("dense", setting()), ("tokens 0.1", setting(token=0.1))):
                estimate = accelerator(backend).estimate(workload)
                found[f"{name}, {tokens} tokens, {label}"] = {
                    "latency_ms": estimate.latency_ms, "terms_ms": estimate.terms_ms,
                    "attention_share": estimate.terms_ms["attention"] / estimate.latency_ms,
                    "energy_mj": estimate.energy.total_mj,
                }  # fmt: skip
    return found
