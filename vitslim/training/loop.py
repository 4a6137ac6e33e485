"""The training loop. Every stage that trains calls it with its own objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from vitslim.progress import Progress
from vitslim.recipe.train import Train
from vitslim.training.augmentation import augment_strongly, mix_images
from vitslim.training.checkpoint import Checkpoint, History
from vitslim.training.device import autocast, compilation, find_device, on_device
from vitslim.training.hook import TrainingHook
from vitslim.training.images import LabeledImages
from vitslim.training.optimizer import CLIPS, AveragedWeights, make_optimizer, set_learning_rates
from vitslim.training.record import LOSS, SECONDS, WAITS, Record
from vitslim.training.waiting import STALL_SHARE, stall_share, warn_of_stalls


class Batch(NamedTuple):
    """Inputs of an objective besides the student's output."""

    images: torch.Tensor
    """float32 (b, C, H, W)."""
    labels: torch.Tensor
    """int64 (b,); with mixup or cutmix float32 (b, classes), in which each row sums to 1; for several labels float32
    (b, classes) of zeros and ones."""
    positions: torch.Tensor
    """int64 (b,): positions in the dataset, by which an objective can look up stored values of each image."""


Objective = Callable[[Any, Batch], Mapping[str, torch.Tensor]]
"""Maps the student's output on a batch (logits (b, classes), with features if it has taps) to scalars by name.
`loss` is minimized, all others are only recorded."""


def train(  # noqa: PLR0913, PLR0915 - each argument is one independent input of a training run
    student: nn.Module,
    dataset: LabeledImages,
    objective: Objective,
    config: Train,
    seed: int,
    masks: Mapping[str, torch.Tensor],
    progress: Progress,
    *,
    label: str = "training",
    hook: TrainingHook | None = None,
    keep: Path | None = None,
    classes: int | None = None,
    epochs: range | None = None,
    rates: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, float]:
    """Train `student` in place on all images of `dataset`; afterwards it is on the CPU and in evaluation mode.

    Training runs on the device of `config`; the objective receives outputs and batches on that device.
    `masks` maps parameter names to bool tensors, True where a weight may change; all other weights stay exactly zero.
    `hook` follows the run, may change gradients and masks, and may end it early.
    The folder `keep` receives the training state; if it already holds one, training continues from it and ends with
    the same weights as without an interruption. Equal seeds give equal weights.
    `classes`, the number of the model's classes, is needed for mixup and cutmix only.
    `epochs`: those of the schedule that are trained; all by default. `rates`: learning rates of parameters by name, as
    factors of `config.lr`; these have no weight decay.

    Returns `loss_first` and `loss_last` (mean loss of the first and the last epoch), `steps`, `images` (images seen),
    `seconds` (of all steps, interruptions excluded), `stall_share` (the share of these that waited for images), and
    the mean of every other scalar over the last epoch.
    Raises StageError if the loss is not finite or PyTorch cannot compile, InputError for a damaged training state,
    BackendUnavailableError without the device.
    """
    device, hook = find_device(config), hook or TrainingHook()
    with on_device(student, device), compilation(config):
        parameters = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
        fixed = {parameters[name]: mask.to(device) for name, mask in masks.items() if name in parameters}
        optimizer = make_optimizer(parameters, config, rates)
        averaged = AveragedWeights(parameters, config.ema)
        checkpoint = Checkpoint(keep, parameters, optimizer, averaged.averages)
        history = _resumed(checkpoint, hook, parameters, fixed)
        per_epoch = len(dataset.batches(config.batch))
        epochs = range(config.epochs) if epochs is None else epochs
        first, steps = epochs.start * per_epoch, epochs.stop * per_epoch
        done = first + len(history.get(LOSS, ()))
        if done > first:
            progress.say(f"{label} continues after step {done} of {steps}")
        show = partial(progress.record, label)
        record, compute_losses = Record(history, steps, first, show), _loss_function(student, objective, config)
        student.train()
        if device.type != "cpu" and config.augment != "light":
            dataset = dataset.preloaded(device, progress)
        batches = record.waits.over(_batches(dataset, config, seed, epochs, done, device))
        batches = progress.track(batches, label, total=steps - done, images=config.batch)
        for step, batch in enumerate(batches, start=done):
            # Each step has its own seed, so that training can continue from any step.
            torch.manual_seed(seed + step)
            set_learning_rates(optimizer, config, step, config.epochs * per_epoch)
            with autocast(config, device):
                losses = compute_losses(_augmented(batch, config, classes))
            optimizer.zero_grad()
            torch.autograd.backward(losses[LOSS])
            hook.after_backward()
            if hook.updates_weights:
                _update(optimizer, fixed, config.clip)
                averaged.update()
            record.add(losses)
            if hook.after_update(step + 1):
                break
            if step + 1 < steps:
                checkpoint.save(record.read, hook.state(), epoch_ended=(step + 1) % per_epoch == 0)
        averaged.copy_to_weights()
        student.eval()
        history = record.read()
    made = len(history[LOSS])
    seen = len(epochs) * len(dataset) if made == steps - first else made * config.batch
    warn_of_stalls(history[WAITS], history[SECONDS], label, progress)
    return _metrics(history, per_epoch) | {"steps": float(made), "images": float(seen)}


def _resumed(
    checkpoint: Checkpoint,
    hook: TrainingHook,
    parameters: Mapping[str, nn.Parameter],
    fixed: Mapping[nn.Parameter, torch.Tensor],
) -> History:
    """Restore the training state and that of the hook; return the history of the steps that were made before."""
    history, state = checkpoint.load()
    hook.start(parameters, {name: fixed[weight] for name, weight in parameters.items() if weight in fixed})
    if history:
        hook.load(state)
    return history


def _loss_function(
    student: nn.Module, objective: Objective, config: Train
) -> Callable[[Batch], Mapping[str, torch.Tensor]]:
    def compute_losses(batch: Batch) -> Mapping[str, torch.Tensor]:
        return objective(student(batch.images), batch)

    # Static shapes: a smaller last batch is compiled separately and does not slow down the others.
    return torch.compile(compute_losses, dynamic=False) if config.compile else compute_losses


def _augmented(batch: Batch, config: Train, classes: int | None) -> Batch:
    images, labels = batch.images, batch.labels
    if config.augment == "strong":
        images = augment_strongly(images)
    if config.has_mixing:
        if classes is None:
            raise ValueError("mixup and cutmix need the number of classes")
        images, labels = mix_images(images, labels, classes, config.mixup, config.cutmix)
    return batch._replace(images=images, labels=labels)


def _metrics(history: History, per_epoch: int) -> dict[str, float]:
    count = min(per_epoch, len(history[LOSS]))
    last = {name: math.fsum(values[-count:]) / count for name, values in history.items()}
    first, seconds = math.fsum(history[LOSS][:count]) / count, math.fsum(history[SECONDS])
    stalls = {STALL_SHARE: stall_share(history[WAITS], history[SECONDS])}
    del last[WAITS]
    return {"loss_first": first, "loss_last": last.pop(LOSS), **last, SECONDS: seconds, **stalls}


def _batches(
    dataset: LabeledImages, config: Train, seed: int, epochs: range, done: int, device: torch.device
) -> Iterator[Batch]:
    """Yield the batches of `epochs` after the first `done` of all; each epoch has its own order and augmentation."""
    for epoch in epochs:
        epoch_seed = seed + 1_000_003 * (epoch + 1)
        images_of_epoch = dataset.augmented(epoch_seed) if config.augment == "light" else dataset
        whole = images_of_epoch.batches(config.batch, shuffle_seed=epoch_seed)
        loader = whole.after(done - epoch * len(whole)).on(device)
        for positions, (images, labels) in zip(loader.positions, loader, strict=True):
            yield Batch(images, labels, torch.tensor(positions).to(device, non_blocking=True))


def _update(optimizer: torch.optim.Optimizer, fixed: Mapping[nn.Parameter, torch.Tensor], clip: float) -> None:
    """Make one optimizer step with gradients clipped to a total norm; masked weights stay zero."""
    for weight, mask in fixed.items():
        if weight.grad is not None:
            weight.grad.mul_(mask)
    clipped = [weight for group in optimizer.param_groups if group.get(CLIPS, True) for weight in group["params"]]
    nn.utils.clip_grad_norm_(clipped, clip)
    optimizer.step()
    # Masked gradients are not enough: the optimizer's moments could still move a pruned weight away from zero.
    with torch.no_grad():
        for weight, mask in fixed.items():
            weight.mul_(mask)
