"""The rows of `scripts/bench gpusq`: the model that each row starts from, its stage, and the comparisons."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vitslim.recipe.stages import Distill, Ptq, Qat, TwoFour
from vitslim.recipe.stages.training import Features, Loss
from vitslim.recipe.train import Train
from vitslim.stages.contract import Stage
from vitslim.stages.distill.stage import DistillStage
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.stages.quantize.qat.stage import QatStage

KFAC = "K-FAC, 1,500 images"
SOFT = "distilled, soft loss"
LAST_THIRD = "distilled, soft and feature loss, last third of the blocks"
ALL_BLOCKS = "distilled, soft and feature loss, all blocks"
LONG = "distilled for 50 epochs on a GPU"
INT8 = "INT8"
W4A8, GROUPS = "W4A8, first and last layer INT8", "W4A8, group size 16"
AVERAGE_BITS, TRAINED = "W4A8, group size 16, average 5 bits", "W4A8, trained"

EVERY_BLOCK = Features(blocks="all", only_agreeing=False)
"""The default of `Features` is GPUSQ's: the last third of the blocks, on images with equal predictions."""
SHORT = Train(epochs=2, batch=32, lr=2e-4, wd=0, augment="strong", mixup=1.0, precision="bfloat16")
ONCE = Train(epochs=1, batch=32, lr=2e-5, wd=0, augment="strong", mixup=1.0, images=1000)
ON_GPU = SHORT.model_copy(update={"epochs": 50, "lr": 3e-4, "device": "cuda"})
LOSSES: dict[str, Any] = {"loss": Loss(hard=0, soft=1, feature=10), "temperature": 4.0}
"""Chosen on training images of classes that training did not use."""
FOUR_BITS: dict[str, Any] = {"bits": 4, "first_last_bits": 8}


def _two_four(**keys: Any) -> Stage:
    return TwoFourStage(TwoFour(method="two-four", **keys))


def _distill(**keys: Any) -> Stage:
    return DistillStage(Distill(labels="teacher", **keys))


def _ptq(**keys: Any) -> Stage:
    """Return a stage for GPUs, which need no reduced range."""
    return PtqStage(Ptq(reduce_range=False, **keys))


def _qat(**keys: Any) -> Stage:
    return QatStage(Qat(method="qat", reduce_range=False, features=EVERY_BLOCK, train=ONCE, **LOSSES, **keys))


STEPS: dict[str, tuple[str, Callable[[], Stage]]] = {
    "magnitude": ("dense", _two_four),
    "magnitude, permutation": ("dense", lambda: _two_four(permute=("mlp", "v"))),
    "SparseGPT, permutation": ("dense", lambda: _two_four(permute=("mlp", "v"), score="sparsegpt")),
    "SparseGPT": ("dense", lambda: _two_four(score="sparsegpt")),
    "K-FAC": ("dense", lambda: _two_four(score="kfac")),
    KFAC: ("dense", lambda: _two_four(score="kfac")),
    SOFT: (KFAC, lambda: _distill(loss=Loss(hard=0, soft=1), temperature=4.0, train=SHORT)),
    LAST_THIRD: (KFAC, lambda: _distill(train=SHORT, **LOSSES)),
    ALL_BLOCKS: (KFAC, lambda: _distill(features=EVERY_BLOCK, train=SHORT, **LOSSES)),
    INT8: (ALL_BLOCKS, _ptq),
    W4A8: (ALL_BLOCKS, lambda: _ptq(**FOUR_BITS)),
    GROUPS: (ALL_BLOCKS, lambda: _ptq(group_size=16, **FOUR_BITS)),
    AVERAGE_BITS: (ALL_BLOCKS, lambda: _ptq(group_size=16, average_bits=5, **FOUR_BITS)),
    TRAINED: (ALL_BLOCKS, lambda: _qat(**FOUR_BITS)),
    LONG: (KFAC, lambda: _distill(features=EVERY_BLOCK, train=ON_GPU, **LOSSES)),
}
"""Row to the row that it starts from, and the stage that makes it."""
CALIBRATION = {KFAC: 1500}
"""Number of calibration images of rows that do not have 256."""
CONTRASTS = (
    ("magnitude, permutation", "magnitude"), ("SparseGPT", "magnitude"), ("SparseGPT", "SparseGPT, permutation"),
    ("K-FAC", "SparseGPT"), (KFAC, "K-FAC"), (SOFT, KFAC), (LAST_THIRD, SOFT), (ALL_BLOCKS, SOFT),
    (INT8, ALL_BLOCKS), (W4A8, ALL_BLOCKS), (GROUPS, W4A8), (AVERAGE_BITS, GROUPS), (TRAINED, W4A8),
    (LONG, ALL_BLOCKS),
)  # fmt: skip
"""Pairs of rows whose agreement is compared image by image; a quantized row is expected to be a little lower."""
