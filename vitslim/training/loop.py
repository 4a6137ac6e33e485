"""The one training loop. Every stage that trains calls it with its own objective."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from vitslim.graph.edits.fake_quant import QUANTIZER_PREFIX
from vitslim.progress import Progress
from vitslim.recipe.stages.training import Train
from vitslim.training.checkpoint import Checkpoint, History
from vitslim.training.device import arithmetic, compilation, find_device, placed
from vitslim.training.images import LabeledImages
from vitslim.training.record import LOSS, SECONDS, Record
from vitslim.training.variation import mixed, strongly_varied

STEP_RATE = 10.0
"""Relative change of a quantizer's step at one update, as a multiple of the learning rate."""


class Batch(NamedTuple):
    """What an objective sees besides the logits."""

    images: torch.Tensor
    """float32 (b, C, H, W)."""
    labels: torch.Tensor
    """int64 (b,)."""
    positions: torch.Tensor
    """int64 (b,): positions in the dataset, so that an objective can look up what it stored per image."""


Objective = Callable[[Any, Batch], Mapping[str, torch.Tensor]]
"""From what the student gives on a batch (logits (b, classes), and features where it is tapped) to scalars by name:
`loss` is minimized, the others are only recorded."""


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
    after_backward: Callable[[], None] | None = None,
    keep: Path | None = None,
) -> dict[str, float]:
    """Train `student` in place on the whole of `dataset`; it is on the CPU and in evaluation mode afterwards.

    It trains on the device that `config` names, and the objective gets its output and batches there.
    `masks` maps parameter names to boolean tensors, True where a weight may move; the others stay exactly zero.
    `after_backward` is called when the gradients of a batch are there, before they are clipped; it may change them.
    In the folder `keep` the state is written as training goes on; where it holds a state, training continues from it
    and ends with the weights that it would have reached without a pause.
    Returns `loss_first` and `loss_last` (mean loss of the first and the last epoch), `steps`, `images` (images seen),
    `seconds` (of all steps, pauses left out), and the mean of every other recorded scalar over the last epoch. Equal
    seeds give equal weights. Raises StageError when the loss is no finite number and where PyTorch cannot compile,
    InputError for a kept state that is damaged, BackendUnavailableError without the device.
    """
    device = find_device(config)
    with placed(student, device), compilation(config):
        parameters = {name: weight for name, weight in student.named_parameters() if weight.requires_grad}
        fixed = {parameters[name]: mask.to(device) for name, mask in masks.items() if name in parameters}
        optimizer = make_optimizer(parameters, config)
        checkpoint = Checkpoint(keep, parameters, optimizer)
        history = checkpoint.load()
        per_epoch = len(dataset.batches(config.batch))
        steps, done = config.epochs * per_epoch, len(history.get(LOSS, ()))
        if done:
            progress.say(f"{label} goes on after step {done} of {steps}")
        record, learn = Record(history, steps), _learner(student, objective, config)
        student.train()
        if device.type != "cpu" and config.augment != "light":
            dataset = dataset.held(device, progress)
        batches = progress.track(_batches(dataset, config, seed, done, device), label, total=steps - done)
        for step, batch in enumerate(batches, start=done):
            # Every step draws numbers of its own, so that training can go on from any of them.
            torch.manual_seed(seed + step)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * group["rate"] * lr_factor(step, steps, config.warmup)
            with arithmetic(config, device):
                losses = learn(_varied(batch, config))
            _update(optimizer, losses[LOSS], fixed, config.clip, after_backward)
            record.add(losses)
            if step + 1 < steps:
                checkpoint.save(record.read, due=(step + 1) % per_epoch == 0)
        student.eval()
        history = record.read()
    return _summary(history, per_epoch) | {"steps": float(steps), "images": float(config.epochs * len(dataset))}


def _learner(student: nn.Module, objective: Objective, config: Train) -> Callable[[Batch], Mapping[str, torch.Tensor]]:
    def learn(batch: Batch) -> Mapping[str, torch.Tensor]:
        return objective(student(batch.images), batch)

    # Shapes are constants: a smaller last batch is compiled once more, and the others are not slower for it.
    return torch.compile(learn, dynamic=False) if config.compile else learn


def _varied(batch: Batch, config: Train) -> Batch:
    images = strongly_varied(batch.images) if config.augment == "strong" else batch.images
    return batch._replace(images=mixed(images) if config.mix else images)


def _summary(history: History, per_epoch: int) -> dict[str, float]:
    last = {name: math.fsum(values[-per_epoch:]) / per_epoch for name, values in history.items()}
    first, seconds = math.fsum(history[LOSS][:per_epoch]) / per_epoch, math.fsum(history[SECONDS])
    return {"loss_first": first, "loss_last": last.pop(LOSS), **last, SECONDS: seconds}


def lr_factor(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over the fraction `warmup` of all steps, then a half cosine to zero: a factor in (0, 1]."""
    warm_steps = int(warmup * steps)
    if step < warm_steps:
        return (step + 1) / warm_steps
    return 0.5 * (1 + math.cos(math.pi * (step - warm_steps) / (steps - warm_steps)))


def make_optimizer(parameters: Mapping[str, nn.Parameter], config: Train) -> torch.optim.AdamW:
    """AdamW; biases, norms and scales (tensors of at most one dimension) do not decay.

    Steps of quantizers move in proportion to their size, by `rate`: AdamW moves every number by about the learning
    rate, which is a good part of a step as small as 0.001.
    """
    decaying: list[nn.Parameter] = []
    constant: list[nn.Parameter] = []
    steps: list[nn.Parameter] = []
    for name, parameter in parameters.items():
        kind = steps if name.startswith(QUANTIZER_PREFIX) else decaying if parameter.ndim > 1 else constant
        kind.append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decaying, "weight_decay": config.wd, "rate": 1.0},
        {"params": constant, "weight_decay": 0.0, "rate": 1.0},
        *({"params": [one], "weight_decay": 0.0, "rate": STEP_RATE * float(one.detach().mean())} for one in steps),
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.lr)


def _batches(dataset: LabeledImages, config: Train, seed: int, done: int, device: torch.device) -> Iterator[Batch]:
    """The batches of all epochs after the first `done`; each epoch has its own order and, with augmentation, its own
    variation."""
    for epoch in range(config.epochs):
        epoch_seed = seed + 1_000_003 * (epoch + 1)
        part = dataset.varied(epoch_seed) if config.augment == "light" else dataset
        whole = part.batches(config.batch, shuffle_seed=epoch_seed)
        loader = whole.after(done - epoch * len(whole)).on(device)
        for positions, (images, labels) in zip(loader.positions, loader, strict=True):
            yield Batch(images, labels, torch.tensor(positions).to(device, non_blocking=True))


def _update(
    optimizer: torch.optim.Optimizer,
    loss: torch.Tensor,
    fixed: Mapping[nn.Parameter, torch.Tensor],
    clip: float,
    after_backward: Callable[[], None] | None,
) -> None:
    """One step of the optimizer, with gradients clipped to a total norm and masked weights held at zero."""
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    if after_backward is not None:
        after_backward()
    for weight, mask in fixed.items():
        if weight.grad is not None:
            weight.grad.mul_(mask)
    nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], clip)
    optimizer.step()
    # Masked gradients alone are not enough: the optimizer's own state must not let a pruned weight grow back.
    with torch.no_grad():
        for weight, mask in fixed.items():
            weight.mul_(mask)
