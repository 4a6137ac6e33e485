"""Batches and objectives of training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Inputs of an objective besides the student's output: the images that this rank has of a batch."""

    images: Tensor
    """float32 (b, C, H, W)."""
    labels: Tensor
    """int64 (b,); with mixup or cutmix float32 (b, classes), in which each row sums to 1; for several labels float32
    (b, classes) of zeros and ones."""
    positions: Tensor
    """int64 (b,): positions in the dataset, by which an objective can look up stored values of each image."""


Objective = Callable[[Any, Batch], Mapping[str, Tensor]]
"""Maps the student's output on a batch (logits (b, classes), with features if it has taps) to scalars by name, each a
mean over images. `loss` is minimized, all others are only recorded."""
