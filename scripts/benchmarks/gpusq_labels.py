"""GPUSQ with labels: 2:4 sparsity, distillation, and INT8 or W4A8, on a DeiT-Tiny that was fine-tuned on Caltech-101.

Every step calibrates and trains on training images, with labels and the dense model as teacher, and is judged on the
700 validation images. Models, logits and training states are kept in runs/gpusq-labels, so that an interrupted run
continues; delete the folder to start again. Takes about 80 minutes on two idle cores with AVX512-BF16. Needs the folder
that VITSLIM_SHARED_DATA names.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from caltech import caltech
from kept_model import folder_of, make_model, predictions
from paired_bootstrap import difference
from paths import RESULTS, RUNS
from result_file import write_result

from vitslim.graph.sketch import sketch
from vitslim.recipe.stages import Distill, Qat, StageConfig, TwoFour
from vitslim.recipe.stages.training import FeatureWeight, Loss
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageResult
from vitslim.stages.registry import make_stage

FOLDER, RESULT = RUNS / "gpusq-labels", RESULTS / "gpusq-labels.json"
CALIBRATION = 512
LOSS = Loss(hard=1, soft=10, feature=5)
SHARED_KEYS: dict[str, Any] = {"batch": 16, "augment": "light", "precision": "auto"}
TRAIN, TRAIN_INTEGERS = Train(epochs=3, lr=2e-4, **SHARED_KEYS), Train(epochs=2, lr=2e-5, **SHARED_KEYS)
DISTILL = Distill(loss=LOSS, train=TRAIN)


def _integers(**keys: Any) -> StageConfig:
    trained: dict[str, Any] = {"loss": LOSS, "train": TRAIN_INTEGERS, "feature_weight": FeatureWeight(stage="distill")}
    return Qat(method="qat", teacher="previous", **trained, **keys)


KFAC, PAIRS, PERMUTED, MAGNITUDE = "2:4, K-FAC", "2:4 pairs, K-FAC", "2:4 pairs, permuted, K-FAC", "2:4, magnitude"
STEPS: dict[str, tuple[str, StageConfig]] = {
    KFAC: ("dense", TwoFour(method="two-four", score="kfac")),
    f"{KFAC}, distilled": (KFAC, DISTILL),
    f"{KFAC}, distilled, INT8": (f"{KFAC}, distilled", _integers(bits=8)),
    # W4A8 computes in eight bits, where tensor cores read 2:4; pairs are the pattern of W4A4.
    f"{KFAC}, distilled, W4A8": (f"{KFAC}, distilled", _integers(bits=4, activation_bits=8)),
    PAIRS: ("dense", TwoFour(method="two-four", score="kfac", pattern="2:4-pairs")),
    f"{PAIRS}, distilled": (PAIRS, DISTILL),
    f"{PAIRS}, distilled, W4A8": (f"{PAIRS}, distilled", _integers(bits=4, activation_bits=8)),
    PERMUTED: ("dense", TwoFour(method="two-four", score="kfac", pattern="2:4-pairs", permute=("mlp", "v"))),
    f"{PERMUTED}, distilled": (PERMUTED, DISTILL),
    f"{PERMUTED}, distilled, W4A8": (f"{PERMUTED}, distilled", _integers(bits=4, activation_bits=8)),
    MAGNITUDE: ("dense", TwoFour(method="two-four")),
    f"{MAGNITUDE}, distilled": (MAGNITUDE, DISTILL),
    f"{MAGNITUDE}, distilled, INT8": (f"{MAGNITUDE}, distilled", _integers(bits=8)),
}
"""Row to the row that it starts from, and the stage that makes it."""


def run() -> dict[str, float]:
    """Write scripts/results/gpusq-labels.json; return top-1 of each row."""
    dense, data = caltech(CALIBRATION)
    labels, sets = torch.as_tensor(data.val.labels), {"val": data.val}
    reference = predictions(FOLDER / "dense", dense, sets)["val"].argmax(1)
    results = {"dense": StageResult(dense)}
    rows = {"dense": {"top1_val": float((reference == labels).float().mean()),
                      "device_mb": sketch(dense).cost().device_bytes / 1e6}}  # fmt: skip
    for name, (source, stage) in STEPS.items():
        kept = folder_of(FOLDER, name)
        known = {"dense": results["dense"], "distill": results[source]}
        results[name] = make_model(kept, results[source].graph, [make_stage(stage)], data, known)
        classes = predictions(kept, results[name].graph, sets)["val"].argmax(1)
        right = (classes == labels).float()
        rows[name] = {
            "top1_val": float(right.mean()), "top1_change_val": difference(right, (reference == labels).float()),
            "agreement_val": float((classes == reference).float().mean()),
            "device_mb": sketch(results[name].graph).cost().device_bytes / 1e6,
            "seconds": results[name].metrics["seconds"]}  # fmt: skip
        print(json.dumps({name: rows[name]}), flush=True)
        write_result(RESULT, rows=rows)
    return {name: row["top1_val"] for name, row in rows.items()}
