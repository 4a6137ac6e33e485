"""The optimizer, its learning rates, and the moving average of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.scheduler.poly_lr import PolyLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vitslim.errors import StageError
from vitslim.graph.axes.names import PREDICTOR_PREFIX
from vitslim.graph.ops.fake_quant import QUANTIZER_PREFIX
from vitslim.recipe.train import Train

CLIPS = "clips"
"""Key of a parameter group: whether its gradients count in the norm that is clipped."""

SCALE_RATE = 10.0
"""Relative change of a quantizer scale in one step, as a multiple of the learning rate."""


def make_optimizer(
    parameters: Mapping[str, nn.Parameter],
    config: Train,
    rates: Mapping[str, float] = MappingProxyType({}),
    blocks: Sequence[str] = (),
) -> torch.optim.Optimizer:
    """Return timm's optimizer without weight decay for biases, norms and scales (tensors of at most one dimension).

    Each group has a factor `lr_scale` of the learning rate: 1 for predictors; for all other weights
    `config.backbone_lr`, times the factor of `layer_scales` for the names of the residual `blocks`, in the order of the
    model. AdamW changes every value by about the learning rate, which is large relative to a quantizer scale of 0.001.
    The learning rate of each scale is therefore proportional to the scale. rates: factors of further parameters by
    name; these have no weight decay, and their gradients are not clipped. Raises StageError for `layer_decay` without
    blocks.
    """
    if config.layer_decay < 1 and not blocks:
        message = "`train.layer_decay` needs residual blocks, and what is trained here has none"
        raise StageError(message, "set train.layer_decay to 1")
    found: dict[tuple[float, bool], list[nn.Parameter]] = {}
    scales: list[nn.Parameter] = []
    layers = layer_scales(list(parameters), blocks, config.layer_decay)
    for name, parameter in parameters.items():
        if name in rates:
            continue
        factor = 1.0 if name.startswith(PREDICTOR_PREFIX) else config.backbone_lr * layers[name]
        is_scale = name.startswith(QUANTIZER_PREFIX)
        (scales if is_scale else found.setdefault((factor, parameter.ndim > 1), [])).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": weights, "weight_decay": config.wd if decays else 0.0, "lr_scale": factor}
        for (factor, decays), weights in found.items()
    ]
    groups += [
        {"params": [one], "weight_decay": 0.0, "lr_scale": SCALE_RATE * float(one.detach().mean())} for one in scales
    ]
    groups += [
        {"params": [parameters[name]], "weight_decay": 0.0, "lr_scale": rate, CLIPS: False}
        for name, rate in rates.items()
        if name in parameters
    ]
    optimizer: torch.optim.Optimizer = create_optimizer_v2(groups, opt=config.optimizer, lr=config.lr)
    return optimizer


def layer_scales(names: Sequence[str], blocks: Sequence[str], decay: float) -> dict[str, float]:
    """Return the factor `decay ** distance` of the learning rate of each parameter, as in timm and BEiT.

    The distance is 0 for parameters after the last block, 1 for the last block, and grows by one for each block before
    it. names: parameters in the order of the model. Parameters that are in no block and come before the blocks have the
    distance of a further block.
    """
    depth, depths = 0, dict[str, int]()
    for name in names:
        inside = next((number for number, block in enumerate(blocks, 1) if name.startswith(f"{block}.")), None)
        depth = inside if inside is not None else (len(blocks) + 1 if depth else 0)
        depths[name] = depth
    last = max(depths.values(), default=0)
    return {name: decay ** (last - depth) for name, depth in depths.items()}


def make_schedule(optimizer: torch.optim.Optimizer, config: Train, steps: int) -> Scheduler:
    """Return timm's schedule of the learning rate: a linear warm-up, then a fall to `config.min_lr` at `steps`.

    Call its `step_update` with the number of steps so far. With w steps of warm-up, step s of them has (s + 1) / w of
    the peak learning rate.
    """
    warm = int(config.warmup * steps)
    before = max(warm - 1, 0)
    kind = CosineLRScheduler if config.schedule == "cosine" else partial(PolyLRScheduler, power=1.0)
    schedule: Scheduler = kind(
        optimizer, t_initial=steps - before, lr_min=config.min_lr, warmup_t=before,
        warmup_lr_init=config.lr / max(warm, 1), warmup_prefix=True, t_in_epochs=False,
    )  # fmt: skip
    return schedule


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
