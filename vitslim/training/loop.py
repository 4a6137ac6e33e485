"""The training loop. Every stage that trains calls it with its own objective."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import nn

from vitslim.progress import Progress
from vitslim.ranks import rank, rank_count
from vitslim.recipe.train import Train
from vitslim.training.augmentation import augment_strongly, erase, mix_images
from vitslim.training.batch import Batch, Objective
from vitslim.training.checkpoint import Checkpoint, History
from vitslim.training.device import compilation, find_device, on_device
from vitslim.training.engine.fabric import make_fabric
from vitslim.training.hook import TrainingHook
from vitslim.training.images import LabeledImages
from vitslim.training.optimizer import AveragedWeights, make_optimizer, make_schedule
from vitslim.training.optimizer_step import OptimizerStep
from vitslim.training.record import LOSS, SECONDS, WAITS, Record
from vitslim.training.waiting import STALL_SHARE, stall_share, warn_of_stalls


def train(  # noqa: PLR0913 - each argument is one independent input of a training run
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
    blocks: Sequence[str] = (),
) -> dict[str, float]:
    """Train `student` in place on all images of `dataset`; afterwards it is on the CPU and in evaluation mode.

    Training runs on the device of `config`; the objective receives outputs and batches on that device. The ranks of a
    run share each batch, and all end with the same weights; every rank needs the same arguments.
    `masks` maps parameter names to bool tensors, True where a weight may change; all other weights stay exactly zero.
    `hook` follows the run, may change gradients and masks, and may end it early.
    The folder `keep` receives the training state; if it already holds one, training continues from it and ends with
    the same weights as without an interruption. Equal seeds give equal weights.
    `classes`, the number of the model's classes, is needed for mixup and cutmix only.
    `epochs`: those of the schedule that are trained; all by default. `rates`: learning rates of parameters by name, as
    factors of `config.lr`; these have no weight decay. `blocks`: names of the residual blocks, for `layer_decay`.

    Returns `loss_first` and `loss_last` (mean loss of the first and the last epoch), `steps`, `images` (images seen),
    `seconds` (of all steps, interruptions excluded), `stall_share` (the share of these that waited for images), and
    the mean of every other scalar over the last epoch.
    Raises StageError if the loss is not finite or PyTorch cannot compile, InputError for a damaged training state,
    BackendUnavailableError without the device.
    """
    device, hook = find_device(config), hook or TrainingHook()
    fabric = make_fabric(config, device)
    with on_device(student, device), compilation(config):
        parameters = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
        # In the dtype of the weights: a product of a float and a bool tensor takes three times as long.
        fixed = {weight: masks[name].to(weight) for name, weight in parameters.items() if name in masks}
        optimizer = make_optimizer(parameters, config, rates, blocks)
        averaged = AveragedWeights(parameters, config.ema)
        checkpoint = Checkpoint(keep, parameters, optimizer, averaged.averages)
        history = _resumed(checkpoint, hook, parameters, fixed)
        schedule = EpochSteps.of(dataset, config, epochs)
        done = schedule.first + len(history.get(LOSS, ()))
        if done > schedule.first:
            progress.say(f"{label} continues after step {done} of {schedule.stop}")
        record = Record(history, schedule.stop, schedule.first, partial(progress.record, label))
        rates_of_steps = make_schedule(optimizer, config, config.epochs * schedule.per_epoch)
        make_step = OptimizerStep(fabric, student, objective, optimizer, fixed, averaged, hook, config)
        student.train()
        if device.type != "cpu" and config.augment != "light":
            dataset = dataset.preloaded(device, progress)
        batches = record.waits.over(_batches(dataset, config, seed, schedule, done, device))
        batches = progress.track(batches, label, total=schedule.stop - done, images=config.batch)
        for step, (batch, share) in enumerate(batches, start=done):
            # Each step has its own seed, so that training can continue from any step, on any number of ranks.
            torch.manual_seed(seed + step)
            rates_of_steps.step_update(step)
            losses = make_step(_augmented(batch, config, classes), share)
            epoch_ended = (step + 1) % schedule.per_epoch == 0
            record.add(losses, read=epoch_ended and rank_count() > 1)
            if hook.after_update(step + 1):
                break
            # All ranks read the record together, but the first alone writes.
            if step + 1 < schedule.stop and (rank_count() == 1 or record.is_read):
                checkpoint.save(record.read, hook.state(), epoch_ended=epoch_ended)
        averaged.copy_to_weights()
        student.eval()
        make_step.release()
        history = record.read()
    warn_of_stalls(history[WAITS], history[SECONDS], label, progress)
    return _metrics(history, schedule, len(dataset), config.batch)


class EpochSteps(NamedTuple):
    """The steps of the epochs that are trained."""

    epochs: range
    per_epoch: int
    """Steps of an epoch."""

    @classmethod
    def of(cls, dataset: LabeledImages, config: Train, epochs: range | None) -> EpochSteps:
        """Return the steps of some epochs; of all epochs for None."""
        return cls(range(config.epochs) if epochs is None else epochs, len(dataset.batches(config.batch)))

    @property
    def first(self) -> int:
        """The first step, counted from 0 over the whole schedule."""
        return self.epochs.start * self.per_epoch

    @property
    def stop(self) -> int:
        """The step after the last one."""
        return self.epochs.stop * self.per_epoch


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


def _augmented(batch: Batch, config: Train, classes: int | None) -> Batch:
    images, labels = batch.images, batch.labels
    if config.augment == "strong":
        images = augment_strongly(images)
    if config.random_erasing > 0:
        images = erase(images, config.random_erasing)
    if config.has_mixing:
        if classes is None:
            raise ValueError("mixup and cutmix need the number of classes")
        images, labels = mix_images(images, labels, classes, config.mixup, config.cutmix)
    return batch._replace(images=images, labels=labels)


def _metrics(history: History, steps: EpochSteps, images: int, batch: int) -> dict[str, float]:
    made = len(history[LOSS])
    count = min(steps.per_epoch, made)
    last = {name: math.fsum(values[-count:]) / count for name, values in history.items()}
    first, seconds = math.fsum(history[LOSS][:count]) / count, math.fsum(history[SECONDS])
    seen = len(steps.epochs) * images if made == steps.stop - steps.first else made * batch
    del last[WAITS]
    stalls = {STALL_SHARE: stall_share(history[WAITS], history[SECONDS])}
    found = {"loss_first": first, "loss_last": last.pop(LOSS), **last, SECONDS: seconds, **stalls}
    return found | {"steps": float(made), "images": float(seen)}


def _batches(
    dataset: LabeledImages, config: Train, seed: int, steps: EpochSteps, done: int, device: torch.device
) -> Iterator[tuple[Batch, float]]:
    """Yield this rank's part of the batches after step `done`, each with its share.

    Each epoch has its own order and augmentation; a batch holds `config.repeated_augmentation` versions of each of its
    images. The share is the number of images of this rank, relative to the mean over the ranks: the mean over the ranks
    of share times loss is the loss of the whole batch.
    """
    if config.rand_augment:
        dataset = dataset.rand_augmented()
    for epoch in steps.epochs:
        skipped = max(0, done - epoch * steps.per_epoch)
        numbers = range(config.repeated_augmentation)
        versions = (_version(dataset, config, seed + 1_000_003 * (epoch + 1), n, skipped, device) for n in numbers)
        for parts in islice(zip(*versions, strict=True), max(0, steps.per_epoch - skipped)):
            batches = [batch for batch, _ in parts]
            joined = batches[0] if len(batches) == 1 else Batch(*map(torch.cat, zip(*batches, strict=True)))
            yield joined, parts[0][1]


def _version(
    dataset: LabeledImages, config: Train, epoch_seed: int, number: int, skipped: int, device: torch.device
) -> Iterator[tuple[Batch, float]]:
    """Yield this rank's part of the batches of an epoch after the first `skipped`, in one version of the images."""
    images = dataset.augmented(epoch_seed + 500_009 * number) if config.augment == "light" else dataset
    whole = images.batches(config.batch // config.repeated_augmentation, shuffle_seed=epoch_seed)
    left, ranks = whole.after(skipped).on(device), rank_count()
    own = left.part(rank(), ranks)
    for every, positions, (pixels, labels) in zip(left.positions, own.positions, own, strict=True):
        share = len(positions) * ranks / len(every) if len(every) >= ranks else 1.0
        yield Batch(pixels, labels, torch.tensor(positions).to(device, non_blocking=True)), share
