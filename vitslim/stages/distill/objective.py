"""The loss of distillation: labels, a teacher's logits and its features, weighted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from vitslim.recipe.teaching import Taught
from vitslim.stages.distill.features import feature_losses
from vitslim.training import Batch, hard_loss, soft_loss
from vitslim.training.taps import Tapped

Teach = Callable[[Batch], Tapped]
"""What the teacher says of a batch; without features where none are compared."""


class Distillation:
    """`hard * cross-entropy + soft * T^2 * KL(teacher || student) + feature * sum_l w_l * distance_l`.

    A term of weight zero is not computed; without a teacher only the hard term remains. GPUSQ, sections 4 and 5.
    """

    def __init__(self, config: Taught, teacher: Teach | None, weights: torch.Tensor | None = None) -> None:
        """`weights` float (blocks,) of the feature losses; None weighs all alike."""
        self.config, self.teacher, self.weights = config, teacher, weights
        self.feature_losses: list[torch.Tensor] = []
        """Of every batch so far: float (blocks,) each, unweighted."""

    def __call__(
        self, output: torch.Tensor | tuple[torch.Tensor, Sequence[torch.Tensor]], batch: Batch
    ) -> torch.Tensor:
        """The loss (scalar) of what the student gives: logits (b, classes), and features where they are compared."""
        loss = self.config.loss
        logits, features = (output, ()) if isinstance(output, torch.Tensor) else output
        taught = self.teacher(batch) if self.teacher is not None else None
        total = logits.new_zeros(())
        if loss.hard > 0:
            by_teacher = taught is not None and self.config.labels == "teacher"
            labels = taught.logits.argmax(dim=1) if taught is not None and by_teacher else batch.labels
            total = total + loss.hard * hard_loss(logits, labels, self.config.train.smoothing)
        if taught is not None and loss.soft > 0:
            total = total + loss.soft * soft_loss(logits, taught.logits, self.config.temperature)
        if taught is not None and loss.feature > 0:
            total = total + loss.feature * self._features(logits, features, taught)
        return total

    def _features(self, logits: torch.Tensor, features: Sequence[torch.Tensor], taught: Tapped) -> torch.Tensor:
        agree = logits.argmax(dim=1) == taught.logits.argmax(dim=1)
        counted = agree if self.config.features.only_agreeing else torch.ones_like(agree)
        losses = feature_losses(features, taught.features, counted)
        self.feature_losses.append(losses.detach())
        return losses.mean() if self.weights is None else (self.weights * losses).mean()
