"""The rows of `scripts/bench gpusq`: the model that each starts from, the stage that makes it, and the comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitslim.recipe.stages import Distill, Ptq, Qat, TwoFour
from vitslim.recipe.stages.training import Features, FeatureWeight, Loss, Train
from vitslim.stages.contract import Stage
from vitslim.stages.distill.stage import DistillStage
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.stages.quantize.qat.stage import QatStage

KFAC = "K-FAC, 1,500 images"
LOGITS, CRITICAL, BLOCKS = "distilled, logits", "distilled, critical blocks", "distilled, all blocks"
LONG, LONGEST = "fifty epochs", "600 epochs on a GPU"
W4A8, W4A8_TRAINED = "W4A8", "W4A8, trained"
ALL_BLOCKS = Features(blocks="all", only_agreeing=False)
"""GPUSQ-ViT compares critical blocks, on images with equal predictions only."""
SHORT = Train(epochs=2, batch=32, lr=2e-4, wd=0, augment="strong", mix=True, precision="bfloat16")
HOURS = SHORT.model_copy(update={"epochs": 50, "lr": 3e-4})
GPU = SHORT.model_copy(update={"epochs": 600, "batch": 60, "lr": 3e-4, "device": "cuda", "compile": True})
ONCE = Train(epochs=1, batch=32, lr=2e-5, wd=0, augment="strong", mix=True, images=1000)
LOGITS_AND_FEATURES: dict[str, Any] = {"loss": Loss(hard=0, soft=1, feature=10), "temperature": 4.0}
"""Chosen on training images of classes that training did not see."""


def _two_four(**keys: Any) -> Stage:
    return TwoFourStage(TwoFour(method="two-four", **keys))


def _distill(**keys: Any) -> Stage:
    return DistillStage(Distill(labels="teacher", **keys))


def _ptq(**keys: Any) -> Stage:
    return PtqStage(Ptq(method="ptq", **keys))


def _qat(weights_from: str | None = None, **keys: Any) -> Stage:
    weight = FeatureWeight(stage=weights_from) if weights_from is not None else None
    return QatStage(
        Qat(method="qat", bits=4, first_last_bits=8, features=ALL_BLOCKS, train=ONCE, feature_weight=weight,
            **LOGITS_AND_FEATURES, **keys)
    )  # fmt: skip


STEPS: dict[str, tuple[str, Callable[[], Stage]]] = {
    "magnitude": ("dense", _two_four),
    "+ permutation": ("dense", lambda: _two_four(permute=("mlp", "v"))),
    "+ permutation, SparseGPT": ("dense", lambda: _two_four(permute=("mlp", "v"), score="sparsegpt")),
    "SparseGPT": ("dense", lambda: _two_four(score="sparsegpt")),
    "K-FAC": ("dense", lambda: _two_four(score="kfac")),
    KFAC: ("dense", lambda: _two_four(score="kfac")),
    LOGITS: (KFAC, lambda: _distill(loss=Loss(hard=0, soft=1), temperature=4.0, train=SHORT)),
    CRITICAL: (KFAC, lambda: _distill(train=SHORT, **LOGITS_AND_FEATURES)),
    BLOCKS: (KFAC, lambda: _distill(features=ALL_BLOCKS, train=SHORT, **LOGITS_AND_FEATURES)),
    LONG: (KFAC, lambda: _distill(features=ALL_BLOCKS, train=HOURS, **LOGITS_AND_FEATURES)),
    LONGEST: (KFAC, lambda: _distill(features=ALL_BLOCKS, train=GPU, **LOGITS_AND_FEATURES)),
    "INT8": (LONG, _ptq),
    W4A8: (LONG, lambda: _ptq(bits=4, first_last_bits=8)),
    "W4A8 in groups of 16": (LONG, lambda: _ptq(bits=4, first_last_bits=8, group_size=16)),
    "the same, 5 bits on average": (LONG, lambda: _ptq(bits=4, first_last_bits=8, group_size=16, average_bits=5)),
    W4A8_TRAINED: (LONG, _qat),
    "W4A8, trained, weighted blocks": (LONG, lambda: _qat(LONG)),
    "W4A4, trained": (LONG, lambda: _qat(activation_bits=4)),
}
"""Row to the row that it starts from, and the stage that makes it."""
CALIBRATION = {KFAC: 1500}
"""Calibration images of rows that do not have 256."""
CONTRASTS = (
    ("+ permutation", "magnitude"), ("SparseGPT", "magnitude"), ("SparseGPT", "+ permutation, SparseGPT"),
    ("K-FAC", "SparseGPT"), (KFAC, "K-FAC"), (LOGITS, KFAC), (CRITICAL, LOGITS), (BLOCKS, LOGITS), (LONG, BLOCKS),
    (LONG, KFAC), (LONGEST, LONG), ("INT8", LONG), (W4A8, LONG), ("W4A8 in groups of 16", LONG),
    ("the same, 5 bits on average", LONG), (W4A8_TRAINED, W4A8), (W4A8_TRAINED, LONG),
    ("W4A8, trained, weighted blocks", W4A8_TRAINED), ("W4A4, trained", LONG),
)  # fmt: skip
"""Pairs of rows whose agreement is compared image by image; the first is expected to be higher, or little lower."""
