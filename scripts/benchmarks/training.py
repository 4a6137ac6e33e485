"""Time and memory of a training step of DeiT-Tiny, relative to a loop written by hand in PyTorch.

Both loops take turns in one process, on the same images, with the same model, teacher, precision and optimizer. Ratios
are those of CPU seconds of the same step of both, so other work on the machine changes them little.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import torch
from nipq_step import kept_bytes
from torch import nn
from torch.nn import functional

from vitslim.data import Dataset, load_data
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Distill, Ptq, TwoFour
from vitslim.recipe.stages.training import Features, Loss
from vitslim.recipe.train import Train
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.registry import make_stage
from vitslim.training.distillation import train_with_teacher
from vitslim.training.distillation.features import block_outputs
from vitslim.training.forms.taps import with_taps
from vitslim.training.hook import TrainingHook

MODEL = "deit_tiny_patch16_224"
BLOCKS = ("blocks.8", "blocks.9", "blocks.10", "blocks.11")
BATCH, STEPS = (int(os.environ.get(name, default)) for name, default in (("BATCH", "16"), ("STEPS", "4")))
ROUNDS = int(os.environ.get("ROUNDS", "3"))
LIMITS = {"labels": 1.03, "distillation": 1.03, "two-four": 1.05, "qat": 1.5}
"""Largest time of a step relative to the loop by hand: that of the same method for the first two, of a dense model
without a teacher for the others."""

Loss_ = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class StepClock(TrainingHook):
    """Records the CPU time at the end of each step."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_update(self, step: int) -> bool:  # noqa: ARG002
        """Record the time; the training goes on."""
        self.times.append(process_time())
        return False


def run() -> dict[str, float]:
    """Return the ratios of time and memory of each arm, the limits of the time, and the number of steps."""
    graph = trace_timm(MODEL, {})
    data = load_data(Data(kind="digits", calibration=16), graph.source, 0)
    images = data.train.balanced(BATCH * STEPS)
    context = StageContext(data, 0, Silent(), lambda _: StageResult(graph), Path())
    students = {
        "labels": graph,
        "distillation": graph,
        "two-four": make_stage(TwoFour(method="two-four")).apply(graph, context).graph,
        "qat": make_stage(Ptq(method="ptq", rounding="nearest", smooth=False)).apply(graph, context).graph,
    }
    figures: dict[str, float] = {"rounds": ROUNDS, "steps": STEPS, "batch": BATCH}
    for name, student in students.items():
        ratios = [ratio for number in range(ROUNDS) for ratio in _ratios(name, student, graph, images, number)]
        figures |= {f"{name}_time": median(ratios), f"{name}_time_limit": LIMITS[name]}
        figures[f"{name}_kept_memory"] = _kept(name, student, graph, images)
    return figures


def _ratios(name: str, student: ModelGraph, dense: ModelGraph, images: Dataset, number: int) -> Iterator[float]:
    """Yield the time of each step but the first, relative to the loop by hand; in odd rounds that comes first."""
    loops: dict[str, Callable[[], list[float]]] = {
        "ours": lambda: _our_steps(name, student.copy(), dense, images),
        "by hand": lambda: _steps_by_hand(name == "distillation", dense.copy(), dense, images),
    }
    found = {which: loops[which]() for which in (sorted(loops) if number % 2 else sorted(loops, reverse=True))}
    return (own / other for own, other in zip(found["ours"], found["by hand"], strict=True))


def _our_steps(name: str, student: ModelGraph, dense: ModelGraph, images: Dataset) -> list[float]:
    clock = StepClock()
    train_with_teacher(student, _config(name), images, lambda _: dense, 0, Silent(), hook=clock)
    return [after - before for before, after in pairwise(clock.times)]


def _config(name: str) -> Distill:
    train = Train(epochs=1, batch=BATCH, device="cpu")
    if name == "distillation":
        features = Features(blocks=BLOCKS, only_agreeing=False)
        return Distill(teacher="dense", loss=Loss(hard=1, soft=1, feature=1), features=features, train=train)
    return Distill(teacher="none", loss=Loss(soft=0), train=train)


def _steps_by_hand(distills: bool, student: ModelGraph, dense: ModelGraph, images: Dataset) -> list[float]:
    """Train as a script would: the model, AdamW, clipped gradients, and a teacher with features of four blocks."""
    weights = list(student.module.parameters())
    optimizer = torch.optim.AdamW(weights, lr=5e-5, weight_decay=0.05)
    compute_loss = _loss_by_hand(distills, student, dense)
    student.module.train()
    times = []
    for pixels, labels in images.batches(BATCH, shuffle_seed=1):
        optimizer.zero_grad()
        torch.autograd.backward(compute_loss(pixels, labels))
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        times.append(process_time())
    return [after - before for before, after in pairwise(times)]


def _loss_by_hand(distills: bool, student: ModelGraph, dense: ModelGraph) -> Loss_:
    if not distills:
        return lambda pixels, labels: functional.cross_entropy(student.module(pixels), labels)
    ours, theirs = (with_taps(one.module, [block_outputs(one)[block] for block in BLOCKS]) for one in (student, dense))

    def compute(pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            answers, targets = theirs(pixels)
        logits, features = ours(pixels)
        soft = functional.kl_div(logits.log_softmax(1), answers.log_softmax(1), reduction="batchmean", log_target=True)
        distance = torch.stack([functional.mse_loss(x, y) for x, y in zip(features, targets, strict=True)]).mean()
        return functional.cross_entropy(logits, labels) + soft + distance

    return compute


def _kept(name: str, student: ModelGraph, dense: ModelGraph, images: Dataset) -> float:
    """Return the bytes that the forward pass keeps for the backward pass, relative to the loop by hand."""
    pixels, labels = next(iter(images.batches(BATCH)))
    by_hand = _loss_by_hand(name == "distillation", dense, dense)
    found: list[int] = []

    class Measured(TrainingHook):
        """Stops after the first step."""

        def after_update(self, step: int) -> bool:  # noqa: ARG002
            return True

    def train_once(_: Any) -> None:
        train_with_teacher(student.copy(), _config(name), images, lambda _: dense, 0, Silent(), hook=Measured())

    found = [kept_bytes(train_once, pixels), kept_bytes(lambda _: by_hand(pixels, labels), pixels)]
    return found[0] / found[1]
