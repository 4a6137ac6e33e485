"""Scales of symmetric quantisers from observed values: min-max and least mean squared error.

Percentile clipping is left out on purpose: it costs DeiT-Tiny 6 points of top-1, because its outliers matter
(specs, ONNX lowering, section 2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.graph.ops.fake_quant import MIN_SCALE

BINS = 8192
"""Histogram bins over the magnitudes of one input: at least 16 to each code, even when the range has just doubled."""

CANDIDATES = 100
"""Scales tried by the search for the least squared error."""

SMALLEST_CANDIDATE = 0.2
"""The search goes from this fraction of the min-max scale up to the whole: smaller ones clip outliers away."""


def minmax_scale(peak: Tensor, top: int) -> Tensor:
    """The scale that represents magnitudes up to `peak` without clipping: `peak / top`.

    peak: float, not negative, any shape. top: largest code, 127 for 8 bits. Where only zeros were seen the scale is 1.
    """
    return torch.where(peak > 0, (peak / top).clamp(min=MIN_SCALE), torch.ones_like(peak))


def mse_scale(magnitudes: Tensor, top: int, counts: Tensor | None = None, candidates: int = CANDIDATES) -> Tensor:
    """For each row the scale with the least squared error of `clamp(round(v / s), -top, top) * s`.

    magnitudes: float (rows, n), not negative: absolute values, or the centres of histogram bins whose `counts` of the
    same shape say how often each occurs. Returns (rows,). The grid has `candidates` scales, evenly spaced from
    SMALLEST_CANDIDATE of the min-max scale up to it; of equal errors the larger scale wins. Scales that would cut off
    values are judged by the whole error, so outliers that matter keep the range wide.
    """
    seen = magnitudes if counts is None else torch.where(counts > 0, magnitudes, 0)
    widest = minmax_scale(seen.amax(dim=1), top)
    best_scale, best_error = widest, torch.full_like(widest, torch.inf)
    for fraction in torch.linspace(1.0, SMALLEST_CANDIDATE, candidates).tolist():
        scale = (widest * fraction).clamp(min=MIN_SCALE)
        codes = torch.round(magnitudes / scale[:, None]).clamp(max=top)
        squared = (codes * scale[:, None] - magnitudes).square()
        error = (squared if counts is None else squared * counts).sum(dim=1)
        better = error < best_error
        best_scale, best_error = torch.where(better, scale, best_scale), torch.where(better, error, best_error)
    return best_scale


def weight_scale(weight: Tensor, top: int, method: str) -> Tensor:
    """One scale for each output channel of a weight (out, ...): shape (out,). `method` is `minmax` or `mse`."""
    magnitudes = weight.detach().abs().flatten(start_dim=1)
    return minmax_scale(magnitudes.amax(dim=1), top) if method == "minmax" else mse_scale(magnitudes, top)


class MagnitudeHistogram:
    """How often each magnitude occurs, collected batch by batch in constant memory.

    The range doubles when a larger value comes, so one pass over the images is enough.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.range = 0.0
        self.peak = 0.0

    def observe(self, values: Tensor) -> None:
        """Add the magnitudes of a float tensor of any shape; values must be finite."""
        magnitudes = values.detach().abs().flatten()
        peak = float(magnitudes.max())
        if peak == 0.0:
            self.counts[0] += magnitudes.numel()
            return
        self._widen(peak)
        self.peak = max(self.peak, peak)
        self.counts += torch.histc(magnitudes, bins=BINS, min=0.0, max=self.range)

    def _widen(self, peak: float) -> None:
        if self.range == 0.0:
            self.range = peak
        while self.range < peak:
            merged = self.counts.view(-1, 2).sum(dim=1)
            self.counts = torch.cat([merged, torch.zeros_like(merged)])
            self.range *= 2.0

    def scale(self, top: int, method: str) -> Tensor:
        """The scale of what was observed, shape (). `method` is `minmax` or `mse`."""
        peak = torch.tensor(self.peak)
        if method == "minmax" or self.peak == 0.0:
            return minmax_scale(peak, top)
        centres = (torch.arange(BINS, dtype=torch.float64) + 0.5) * (self.range / BINS)
        centres = centres.clamp(max=self.peak)
        return mse_scale(centres[None], top, self.counts[None])[0].float()
