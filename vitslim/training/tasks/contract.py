"""The interface of a task. Every tensor of outputs is float (b, k), as `vitslim.graph.outputs.joined` returns it."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Predicted(NamedTuple):
    """The predictions of a model on a data set."""

    values: Tensor
    """What the task stores of the outputs, one row for each image."""
    labels: Tensor
    """int64 (n,), negative without a label; for several labels float (n, classes) of zeros and ones."""


class TaskFunctions(Protocol):
    """Losses, agreement and metrics of one task."""

    @property
    def agreement(self) -> str:
        """Key of the agreement with another model among the metrics."""
        ...

    @property
    def loss_name(self) -> str:
        """Name of `soft_loss` in metrics: `kl` or `distance`."""
        ...

    @property
    def uses_calibration(self) -> bool:
        """Whether metrics also need the outputs on the calibration images."""
        ...

    def hard_loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Return the loss with the labels, averaged over the batch. Raises StageError for a task without labels."""
        ...

    def soft_loss(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the distance from the outputs of a teacher, averaged over the batch; 0 for equal outputs."""
        ...

    def describe_loss(self, value: float) -> str:
        """Return a value of `soft_loss` with its unit."""
        ...

    def teacher_labels(self, outputs: Tensor) -> Tensor:
        """Return the labels that a model predicts. Raises StageError for a task without labels."""
        ...

    def agrees(self, first: Tensor, second: Tensor) -> Tensor:
        """Return for each image whether two models predict the same: bool (b,)."""
        ...

    def nearly_agrees(self, expected: Tensor, found: Tensor) -> Tensor:
        """Return the same, where predictions that are nearly tied in `expected` count as equal: bool (b,)."""
        ...

    def importance_loss(self, outputs: Tensor, labels: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the scalar whose gradients score the importance of weights."""
        ...

    def log_likelihoods(self, outputs: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Return the log-likelihoods of answers sampled from the model, up to a constant, summed over images: (draws,).

        The expected outer product of their gradients is the Fisher information (Martens and Grosse, ICML 2015, section
        2.2). Raises StageError for outputs that are not finite.
        """
        ...

    def groups(self, outputs: Tensor) -> Tensor:
        """Return a group of each image by its content, int64 (n,). outputs: of the last output alone, (n, k)."""
        ...

    def stored(self, outputs: Tensor) -> Tensor:
        """Return the part of the outputs that the metrics read: one row for each image."""
        ...

    def scores(
        self, found: Predicted, dense: Tensor | None, calibration: Predicted | None, dense_calibration: Tensor | None
    ) -> dict[str, float]:
        """Return the metrics of `vitslim.tasks.TASK_METRICS` by key.

        dense: the stored outputs of the dense model on the same images; None for the dense model itself. calibration:
        predictions on the calibration images, and those of the dense model; None unless `uses_calibration`.
        """
        ...
