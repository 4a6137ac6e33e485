"""The optimizer, its learning rates, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vitslim.graph.axes.names import PREDICTOR_PREFIX
from vitslim.graph.ops.fake_quant import QUANTIZER_PREFIX
from vitslim.recipe.train import Train

CLIPS = "clips"
"""Key of a parameter group: whether its gradients count in the norm that is clipped."""

SCALE_RATE = 10.0
"""Relative change of a quantizer scale in one step, as a multiple of the learning rate."""


def lr_factor(step: int, steps: int, warmup: float, floor: float = 0.0) -> float:
    """Return the learning-rate factor of a step, in (0, 1]: a linear warm-up, then a half cosine to `floor`.

    `warmup` is the fraction of all steps that warm up; `floor` is in [0, 1].
    """
    warm_steps = int(warmup * steps)
    if step < warm_steps:
        return (step + 1) / warm_steps
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - warm_steps) / (steps - warm_steps)))


def make_optimizer(
    parameters: Mapping[str, nn.Parameter], config: Train, rates: Mapping[str, float] = MappingProxyType({})
) -> torch.optim.AdamW:
    """Return AdamW without weight decay for biases, norms and scales (tensors of at most one dimension).

    Each group has a factor `rate` of the learning rate: 1 for predictors and `config.backbone_lr` for all other
    weights. AdamW changes every value by about the learning rate, which is large relative to a quantizer scale of
    0.001. The learning rate of each scale is therefore proportional to the scale. rates: factors of further parameters
    by name; these have no weight decay, and their gradients are not clipped.
    """
    found: dict[tuple[bool, bool], list[nn.Parameter]] = {
        (is_predictor, decays): [] for is_predictor in (False, True) for decays in (True, False)
    }
    scales: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        if name in rates:
            continue
        is_scale, is_predictor = name.startswith(QUANTIZER_PREFIX), name.startswith(PREDICTOR_PREFIX)
        (scales if is_scale else found[is_predictor, parameter.ndim > 1]).append(parameter)
    groups: list[dict[str, Any]] = [
        {
            "params": weights,
            "weight_decay": config.wd if decays else 0.0,
            "rate": 1.0 if is_predictor else config.backbone_lr,
        }
        for (is_predictor, decays), weights in found.items()
    ]
    groups += [
        {"params": [one], "weight_decay": 0.0, "rate": SCALE_RATE * float(one.detach().mean())} for one in scales
    ]
    groups += [
        {"params": [parameters[name]], "weight_decay": 0.0, "rate": rate, CLIPS: False}
        for name, rate in rates.items()
        if name in parameters
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr)


def set_learning_rates(optimizer: torch.optim.Optimizer, config: Train, step: int, steps: int) -> None:
    """Set the learning rate of each group for a step."""
    factor = lr_factor(step, steps, config.warmup, config.min_lr / config.lr)
    for group in optimizer.param_groups:
        group["lr"] = config.lr * group["rate"] * factor


class AveragedWeights:
    """Exponential moving averages of weights, which start at the weights before training."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float | None) -> None:
        """Without a decay there are no averages, and the methods have no effect."""
        self.parameters = parameters
        self.averages: dict[str, Tensor] = {}
        """Average by parameter name, on the device of the parameter."""
        if decay is not None:
            self.averages = {name: weight.detach().clone() for name, weight in parameters.items()}
            self._average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Set each average to `decay * average + (1 - decay) * weight`; a weight that stays zero has average zero."""
        if self.averages:
            self._average(list(self.averages.values()), list(self.parameters.values()), 0)

    def copy_to_weights(self) -> None:
        """Overwrite the weights by their averages."""
        with torch.no_grad():
            for name, average in self.averages.items():
                self.parameters[name].copy_(average)
