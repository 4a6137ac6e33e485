"""The loss of distillation: labels, a teacher's logits and its features, weighted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from vitslim.recipe.stages.training import TrainedWithTeacher
from vitslim.stages.distill.features import feature_losses
from vitslim.training import LOSS, Batch, hard_loss, soft_loss
from vitslim.training.taps import Tapped

FEATURE_LOSS = "feature_loss."
"""What the name of a block's feature loss begins with."""

Teach = Callable[[Batch], Tapped]
"""What the teacher says of a batch; without features where none are compared."""


class Distillation:
    """`hard * cross-entropy + soft * T^2 * KL(teacher || student) + feature * sum_l w_l * distance_l`.

    A term of weight zero is not computed; without a teacher only the hard term remains. GPUSQ, sections 4 and 5.
    """

    def __init__(
        self,
        config: TrainedWithTeacher,
        teacher: Teach | None,
        blocks: Sequence[str] = (),
        weights: torch.Tensor | None = None,
    ) -> None:
        """`blocks` are those whose features are compared. `weights` float (blocks,)
        weigh blocks; None weighs all alike."""
        self.config, self.teacher, self.blocks = config, teacher, blocks
        self.weights = weights

    def __call__(
        self, output: torch.Tensor | tuple[torch.Tensor, Sequence[torch.Tensor]], batch: Batch
    ) -> Mapping[str, torch.Tensor]:
        """`loss` (scalar) of what the student gives (logits (b, classes), and features where they are compared), and
        `feature_loss.BLOCK` of each block, unweighted."""
        loss = self.config.loss
        logits, features = (output, ()) if isinstance(output, torch.Tensor) else output
        taught = self.teacher(batch) if self.teacher is not None else None
        total, recorded = logits.new_zeros(()), {}
        if loss.hard > 0:
            by_teacher = taught is not None and self.config.labels == "teacher"
            labels = taught.logits.argmax(dim=1) if taught is not None and by_teacher else batch.labels
            total = total + loss.hard * hard_loss(logits, labels, self.config.train.label_smoothing)
        if taught is not None and loss.soft > 0:
            total = total + loss.soft * soft_loss(logits, taught.logits, self.config.temperature)
        if taught is not None and loss.feature > 0:
            distances = self._distances(logits, features, taught)
            total = total + loss.feature * (distances if self.weights is None else self.weights * distances).mean()
            recorded = {FEATURE_LOSS + block: one for block, one in zip(self.blocks, distances, strict=True)}
        return {LOSS: total, **recorded}

    def _distances(self, logits: torch.Tensor, features: Sequence[torch.Tensor], taught: Tapped) -> torch.Tensor:
        agree = logits.argmax(dim=1) == taught.logits.argmax(dim=1)
        counted = agree if self.config.features.only_agreeing else torch.ones_like(agree)
        return feature_losses(features, taught.features, counted)
