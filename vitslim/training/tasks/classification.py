"""Classification: one label for each image, by a softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from vitslim.errors import StageError
from vitslim.training.losses import hard_loss, soft_loss
from vitslim.training.tasks.contract import Predicted

NEAR_TIE = 0.1
"""Two classes are nearly tied if their logits differ by less than this fraction of the root mean square."""
SAMPLING_TEMPERATURE = 4.0
"""Softmax temperature for sampling labels from the model's predictions. Values above 1 also sample less likely classes,
which gives a better curvature estimate."""


class Classification:
    """The functions of `task: classify`; outputs are logits (b, classes), labels int64 (b,) or probabilities."""

    agreement = "agreement"
    loss_name = "kl"
    uses_calibration = False

    def hard_loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Return the cross-entropy."""
        return hard_loss(outputs, labels, smoothing)

    def soft_loss(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Return the KL divergence from the teacher's predictions, in nats times the squared temperature."""
        return soft_loss(outputs, teacher, temperature)

    def describe_loss(self, value: float) -> str:
        """Return the value in nats."""
        return f"{value:.3g} nats"

    def teacher_labels(self, outputs: Tensor) -> Tensor:
        """Return the predicted classes, int64 (b,)."""
        return outputs.argmax(dim=1)

    def agrees(self, first: Tensor, second: Tensor) -> Tensor:
        """Return whether the predicted classes are the same."""
        return first.argmax(dim=1) == second.argmax(dim=1)

    def nearly_agrees(self, expected: Tensor, found: Tensor) -> Tensor:
        """Return whether the predicted class of `found` is that of `expected`, or nearly tied with it."""
        before, after = expected.argmax(dim=1, keepdim=True), found.argmax(dim=1, keepdim=True)
        gap = (expected.gather(1, before) - expected.gather(1, after)).squeeze(1)
        return gap <= NEAR_TIE * expected.square().mean(dim=1).sqrt()

    def importance_loss(self, outputs: Tensor, labels: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Return the cross-entropy with the labels."""
        return hard_loss(outputs, labels)

    def log_likelihoods(self, outputs: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Return the log-probabilities of classes sampled at SAMPLING_TEMPERATURE."""
        log_probabilities = torch.log_softmax(outputs / SAMPLING_TEMPERATURE, dim=1)
        if not bool(log_probabilities.isfinite().all()):
            raise StageError("the logits of calibration images are not finite", "check the images and model.checkpoint")
        classes = torch.multinomial(log_probabilities.detach().exp(), draws, replacement=True, generator=generator)
        return log_probabilities.gather(1, classes).sum(dim=0)

    def groups(self, outputs: Tensor) -> Tensor:
        """Return the predicted classes."""
        return outputs.argmax(dim=1)

    def stored(self, outputs: Tensor) -> Tensor:
        """Return the predicted classes, int64 (n,)."""
        return outputs.argmax(dim=1)

    def scores(
        self,
        found: Predicted,
        dense: Tensor | None,
        calibration: Predicted | None,  # noqa: ARG002
        dense_calibration: Tensor | None,  # noqa: ARG002
    ) -> dict[str, float]:
        """Return top-1 accuracy if the images have labels, and top-1 agreement."""
        has_labels = bool((found.labels >= 0).all())
        scores = {"top1": (found.values == found.labels).float().mean().item()} if has_labels else {}
        return scores if dense is None else scores | {"agreement": (found.values == dense).float().mean().item()}
