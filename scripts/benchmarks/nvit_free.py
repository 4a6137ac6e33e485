"""Rows of `scripts/bench nvit` without training: agreement with the dense DeiT-Tiny as the latency falls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from kept_model import folder_of, make_model, predictions
from nvit_arms import BACKEND, FOLDER, FREE, MODEL, table_of
from paired_bootstrap import difference
from paths import SHARED, require_shared

from vitslim.data import load_data
from vitslim.graph.sketch import cost
from vitslim.graph.trace import trace_timm
from vitslim.recipe.schema import Data

SHARES = (0.975, 0.95, 0.925, 0.9)
"""Shares of the FP32 latency by the table of this processor."""
AGREEMENT = 0.9


def free_rows() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a row for each method at each share, then the smallest share at which a method keeps 90 % agreement."""
    dense = trace_timm(MODEL, {}, SHARED / "deit_tiny" / "model.safetensors")
    images = require_shared("imagenette")
    data = load_data(Data(kind="imagefolder", root=str(images), calibration=256,
                          also_evaluate={"samples": str(SHARED / "imagenet_samples")}), dense.source, 0)  # fmt: skip
    sets = {"val": data.val, "samples": data.extra["samples"]}
    table = table_of(MODEL, {}, BACKEND, 1, "float32")
    reference = {name: logits.argmax(1) for name, logits in predictions(FOLDER / "free" / "dense", dense, sets).items()}
    reached: dict[str, float] = dict.fromkeys(FREE, 1.0)
    for share in SHARES:
        baseline: dict[str, torch.Tensor] = {}
        for name, arm in FREE.items():
            folder = folder_of(FOLDER / "free", f"{name} {share}")
            result = make_model(folder, dense, [arm(share, table, True)], data)
            found = {key: one.argmax(1) for key, one in predictions(folder, result.graph, sets).items()}
            row: dict[str, Any] = {"share": share, "macs_ratio": cost(result.graph).macs / cost(dense).macs,
                                   "seconds": result.metrics["seconds"]}  # fmt: skip
            same = {key: (classes == reference[key]).float() for key, classes in found.items()}
            baseline = baseline or same
            for key, agreed in same.items():
                row |= {f"agreement_{key}": float(agreed.mean()),
                        f"agreement_over_first_{key}": difference(agreed, baseline[key])}  # fmt: skip
            if row["agreement_samples"] >= AGREEMENT:
                reached[name] = share
            yield f"{name} {share}", row
    for name, share in reached.items():
        yield f"{name} at {100 * AGREEMENT:.0f} % agreement", {"smallest_share": share}
