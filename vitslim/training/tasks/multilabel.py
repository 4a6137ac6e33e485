"""Multi-label classification: any number of labels for each image, each by a sigmoid."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from vitslim.errors import StageError
from vitslim.training.tasks.classification import NEAR_TIE
from vitslim.training.tasks.contract import Predicted


class MultiLabel:
    """The functions of `task: multilabel`; outputs are logits, labels zeros and ones, both float (b, classes)."""

    agreement = "label_agreement"
    loss_name = "kl"
    uses_calibration = False

    def hard_loss(self, outputs: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Return the binary cross-entropy, averaged over batch and classes; smoothing moves labels toward 1/2."""
        smoothed = labels * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(outputs, smoothed.to(outputs))

    def soft_loss(self, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
        """Return T^2 times the KL divergence from the teacher's probability of each label, mean over classes."""
        ours, theirs = outputs / temperature, teacher / temperature
        present = theirs.sigmoid() * (functional.logsigmoid(theirs) - functional.logsigmoid(ours))
        absent = (-theirs).sigmoid() * (functional.logsigmoid(-theirs) - functional.logsigmoid(-ours))
        return temperature**2 * (present + absent).mean()

    def describe_loss(self, value: float) -> str:
        """Return the value in nats."""
        return f"{value:.3g} nats for each label"

    def teacher_labels(self, outputs: Tensor) -> Tensor:
        """Return the labels of a probability above one half: zeros and ones, float (b, classes)."""
        return (outputs > 0).to(outputs)

    def agrees(self, first: Tensor, second: Tensor) -> Tensor:
        """Return whether all predicted labels are the same."""
        return ((first > 0) == (second > 0)).all(dim=1)

    def nearly_agrees(self, expected: Tensor, found: Tensor) -> Tensor:
        """Return whether all labels are the same, but for those with a logit near zero."""
        near = expected.abs() <= NEAR_TIE * expected.square().mean(dim=1, keepdim=True).sqrt()
        return (((expected > 0) == (found > 0)) | near).all(dim=1)

    def importance_loss(self, outputs: Tensor, labels: Tensor, generator: torch.Generator | None) -> Tensor:  # noqa: ARG002
        """Return the binary cross-entropy with the labels."""
        return self.hard_loss(outputs, labels)

    def log_likelihoods(self, outputs: Tensor, draws: int, generator: torch.Generator) -> Tensor:
        """Return the log-probabilities of sets of labels that are sampled from the predictions."""
        probabilities = outputs.detach().sigmoid()
        if not bool(probabilities.isfinite().all()):
            raise StageError("the logits of calibration images are not finite", "check the images and model.checkpoint")
        labels = torch.bernoulli(probabilities.expand(draws, -1, -1), generator=generator)
        signs = 2 * labels - 1
        return functional.logsigmoid(signs * outputs).sum(dim=(1, 2))

    def groups(self, outputs: Tensor) -> Tensor:
        """Return the most likely label of each image."""
        return outputs.argmax(dim=1)

    def stored(self, outputs: Tensor) -> Tensor:
        """Return the logits."""
        return outputs

    def scores(
        self,
        found: Predicted,
        dense: Tensor | None,
        calibration: Predicted | None,  # noqa: ARG002
        dense_calibration: Tensor | None,  # noqa: ARG002
    ) -> dict[str, float]:
        """Return mean average precision if the images have labels, and the share with the same predicted labels."""
        has_labels = found.labels.ndim == 2
        scores = {"map": mean_average_precision(found.values, found.labels)} if has_labels else {}
        return (
            scores
            if dense is None
            else scores | {"label_agreement": self.agrees(found.values, dense).float().mean().item()}
        )


def mean_average_precision(logits: Tensor, labels: Tensor) -> float:
    """Return the average precision of each label, averaged over the labels that an image has; NaN if there is none.

    logits: float (n, classes). labels: zeros and ones, (n, classes). In [0, 1]; as scikit-learn computes it, without
    interpolation.
    """
    from sklearn.metrics import average_precision_score  # takes a second, which other tasks do not need

    present = labels.sum(dim=0) > 0
    if not bool(present.any()):
        return math.nan
    return float(average_precision_score(labels[:, present].int().numpy(), logits[:, present].double().numpy()))
