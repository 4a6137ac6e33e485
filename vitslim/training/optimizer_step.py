"""One step of the optimizer, on the engine."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from vitslim.errors import StageError
from vitslim.ranks import rank_count
from vitslim.recipe.train import Train
from vitslim.training.batch import Batch, Objective
from vitslim.training.device import find_precision
from vitslim.training.forms.attention import UnfusedAttention
from vitslim.training.forms.recomputation import with_recomputation
from vitslim.training.hook import TrainingHook
from vitslim.training.optimizer import CLIPS, AveragedWeights
from vitslim.training.record import LOSS

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class StudentLoss(nn.Module):
    """Maps a batch to losses. The engine sees which outputs of the student the loss uses, so unused ones may exist."""

    def __init__(self, student: nn.Module, objective: Objective, *, unfused_attention: bool) -> None:
        super().__init__()
        self.student = student
        self._objective, self._unfused_attention = objective, unfused_attention

    def forward(self, batch: Batch) -> Mapping[str, Tensor]:
        """Return the losses of a batch by name; see `Objective`."""
        with UnfusedAttention() if self._unfused_attention else nullcontext():
            output: Any = self.student(batch.images)
            return self._objective(output, batch)


def _recomputed(student: nn.Module) -> nn.Module:
    if isinstance(student, GraphModule):
        return with_recomputation(student)
    message = "the model of this training has no graph, so its activations cannot be computed again"
    raise StageError(message, "set `train.activation_checkpointing` to false")


class OptimizerStep:
    """Computes the gradients of a batch, averages them over the ranks, and updates the student."""

    def __init__(  # noqa: PLR0913, PLR0917 - each argument is one independent part of a step
        self,
        fabric: Fabric,
        student: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        fixed: Mapping[nn.Parameter, Tensor],
        averaged: AveragedWeights,
        hook: TrainingHook,
        config: Train,
    ) -> None:
        """`fixed`: masks of parameters in their dtype, 1 where a weight may change. `averaged`: follows the weights."""
        self._fabric, self._optimizer, self._fixed = fabric, optimizer, fixed
        self._averaged, self._hook, self._config = averaged, hook, config
        # torch.compile chooses its own implementation of attention.
        is_unfused = fabric.device.type == "cpu" and find_precision(config, fabric.device) == "bfloat16"
        module = _recomputed(student) if config.activation_checkpointing else student
        loss: nn.Module = StudentLoss(module, objective, unfused_attention=is_unfused and not config.compile)
        if config.compile:
            # Static shapes: a smaller last batch is compiled separately and does not slow down the others.
            loss = torch.compile(loss, dynamic=False)  # type: ignore[assignment]
        self._loss: nn.Module | None = fabric.setup_module(loss, move_to_device=False)

    def __call__(self, batch: Batch, share: float) -> dict[str, Tensor]:
        """Make a step, and return the losses of the batch by name.

        `share`: the images of this rank, relative to the mean over the ranks.
        """
        self._optimizer.zero_grad()
        losses = self._backward(batch, share)
        self._hook.after_backward()
        if self._hook.updates_weights:
            self._update()
            self._averaged.update()
        return losses

    def release(self) -> None:
        """End the loss, and with it the hooks by which the engine averages gradients of the student."""
        self._loss = None
        if rank_count() > 1:
            gc.collect()

    def _backward(self, batch: Batch, share: float) -> dict[str, Tensor]:
        """Compute the gradients of a batch, part by part."""
        loss: Any = self._loss
        images, total = len(batch.images), dict[str, Tensor]()
        size = -(-images // self._config.accumulate)
        for start in range(0, images, size):
            part = batch if size == images else Batch(*(one[start : start + size] for one in batch))
            weight = share * len(part.images) / images
            with self._fabric.no_backward_sync(loss, enabled=start + size < images):
                losses: Mapping[str, Tensor] = loss(part)
                self._fabric.backward(losses[LOSS] if weight == 1 else weight * losses[LOSS])
            for name, value in losses.items():
                found = value.detach() if weight == 1 else weight * value.detach()
                total[name] = total[name] + found if name in total else found
        return total

    def _update(self) -> None:
        """Make one optimizer step with gradients clipped to a total norm; masked weights stay zero."""
        for weight, mask in self._fixed.items():
            if weight.grad is not None:
                weight.grad.mul_(mask)
        groups = (group for group in self._optimizer.param_groups if group.get(CLIPS, True))
        nn.utils.clip_grad_norm_([weight for group in groups for weight in group["params"]], self._config.clip)
        self._optimizer.step()
        # Masked gradients are not enough: the optimizer's moments could still move a pruned weight away from zero.
        with torch.no_grad():
            for weight, mask in self._fixed.items():
                weight.mul_(mask)
