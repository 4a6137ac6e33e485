"""Initial ranges of weights and activations, and the form of the integers of an activation. Pure tensor mathematics."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vitslim.graph.ops.fake_quant import integer_range
from vitslim.stages.quantize.histogram import WORTH_A_ZERO_POINT, Extremes
from vitslim.stages.quantize.weights.weight_scales import minmax_scale, mse_scale

SHIFTS = (0.17, 0.375)
"""Constants that make an activation positive: the least values of GELU and of hard-swish are -0.17 and -3/8."""
PUBLISHED = "published"
SIGNED_STATE, UNSIGNED_STATE = 3.0, 6.0
"""Published initial range parameters of signed and of unsigned activations."""


class ActivationForm(NamedTuple):
    """The range of an activation: [-end, end] if signed, else [-shift, end - shift]."""

    signed: bool
    shift: float
    end: float


def activation_form(observed: Extremes, bits: int, calibrate: str, shiftable: bool = True) -> ActivationForm:
    """Return the form and the initial range of an activation from its observed values; `mse` needs a histogram.

    Activations without negative values are unsigned. Those that a constant of `SHIFTS` makes positive are shifted by
    it, if that makes the quantization step smaller; all others are signed. calibrate: `mse`, `minmax` or `published`.
    """
    low, high = observed.low, observed.high
    if low == high == 0:
        return ActivationForm(False, 0.0, 1.0)
    shift = next((shift for shift in SHIFTS if -low <= shift), None) if low < 0 and shiftable else None
    top, wide_top = integer_range(bits, narrow=True)[1], 2**bits - 1
    peak = max(high, -low)
    if low < 0 and (shift is None or (high + shift) / wide_top >= WORTH_A_ZERO_POINT * peak / top):
        factor = 1.0 if calibrate == "minmax" else observed.find_range(bits, symmetric=True).scale * top / peak
        return ActivationForm(True, 0.0, _published(SIGNED_STATE) if calibrate == PUBLISHED else factor * peak)
    if calibrate == PUBLISHED:
        return ActivationForm(False, shift or 0.0, _published(UNSIGNED_STATE))
    factor = 1.0 if calibrate == "minmax" else observed.find_range(bits).scale * wide_top / (high - low)
    return ActivationForm(False, shift or 0.0, factor * high + (shift or 0.0))


def weight_end(weight: Tensor, bits: int, calibrate: str, per_channel: bool) -> Tensor:
    """Return the initial largest value of a weight (out, ...): float, positive, (), or (out,) per channel."""
    values = weight.detach().flatten(start_dim=1) if per_channel else weight.detach().reshape(1, -1)
    limits = integer_range(bits, narrow=True)
    if calibrate == PUBLISHED:
        ends = functional.softplus(values.amax(dim=1))
    elif calibrate == "mse":
        ends = mse_scale(values, limits) * limits[1]
    else:
        ends = minmax_scale(values.abs().amax(dim=1), limits[1]) * limits[1]
    return ends if per_channel else ends[0]


def _published(state: float) -> float:
    return float(functional.softplus(torch.tensor(state)))
