"""Paired bootstrap: confidence interval of the difference between two models on the same images."""

from __future__ import annotations

import numpy as np
from torch import Tensor

RESAMPLES = 10_000


def difference(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    """Return the mean of `first - second` and its 95 % interval over resampled images; both float (images,)."""
    each = (first - second).numpy()
    chosen = np.random.default_rng(0).integers(0, len(each), (RESAMPLES, len(each)))
    low, high = np.quantile(each[chosen].mean(axis=1), (0.025, 0.975))
    return float(each.mean()), float(low), float(high)
