"""Magnitude pruning of single weights (Han et al., NeurIPS 2015). Pure tensor mathematics."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitslim.sparsity import zeros


def magnitude_masks(weights: Sequence[Tensor], sparsity: float) -> list[Tensor]:
    """Return the masks that remove the fraction `sparsity` of all weights, smallest magnitudes first.

    weights: finite float tensors of any shapes, ranked together. sparsity: in [0, 1); of n weights floor(n * sparsity)
    are removed. Of equal magnitudes the first is kept, by tensor and then by position, so the masks depend on the
    weights alone. Returns bool tensors of the same shapes. Raises ValueError for weights that are not finite.
    """
    magnitudes = torch.cat([weight.detach().abs().flatten() for weight in weights])
    if not magnitudes.isfinite().all():
        raise ValueError("weights are not finite")
    count = zeros(magnitudes.numel(), sparsity)
    kept = torch.ones_like(magnitudes, dtype=torch.bool)
    if count:
        threshold = magnitudes.kthvalue(count).values
        below, equal = magnitudes < threshold, magnitudes == threshold
        last_equal = equal.nonzero().flatten()[-(count - int(below.sum())) :]
        kept[below] = False
        kept[last_equal] = False
    parts: tuple[Tensor, ...] = torch.split(kept, [weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]
