"""The distillation loss: a weighted sum over labels, the teacher's logits and the teacher's features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from vitslim.recipe.stages.training import TrainedWithTeacher
from vitslim.training.distillation.features import FEATURE_LOSS, feature_losses
from vitslim.training.loop import Batch
from vitslim.training.losses import hard_loss, soft_loss
from vitslim.training.record import LOSS
from vitslim.training.taps import LogitsAndFeatures

TeacherFunction = Callable[[Batch], LogitsAndFeatures]
"""Returns the teacher's logits and features for a batch; features are empty without a feature loss."""


class DistillationLoss:
    """`hard * CE + soft * T^2 * KL(teacher || student) + feature * mean_l(w_l * distance_l)`.

    A term of weight zero is not computed; without a teacher only the hard term remains. Source: GPUSQ-ViT (Yu et al.,
    CVPR 2023).
    """

    def __init__(
        self,
        config: TrainedWithTeacher,
        teacher: TeacherFunction | None,
        blocks: Sequence[str] = (),
        weights: Tensor | None = None,
    ) -> None:
        """`blocks` names the compared blocks. `weights`, float (blocks,), weights their distances; None: all are 1."""
        self.config, self.teacher, self.blocks = config, teacher, blocks
        self.weights = weights

    def __call__(self, output: Tensor | tuple[Tensor, Sequence[Tensor]], batch: Batch) -> Mapping[str, Tensor]:
        """Return `loss` and, for each compared block, the unweighted `feature_loss.BLOCK`; all are scalars.

        `output` is the student's logits (b, classes), or a pair of logits and the features of each compared block.
        """
        loss = self.config.loss
        logits, features = (output, ()) if isinstance(output, Tensor) else output
        target = self.teacher(batch) if self.teacher is not None else None
        total, recorded = logits.new_zeros(()), {}
        if loss.hard > 0:
            use_teacher = target is not None and self.config.labels == "teacher"
            labels = target.logits.argmax(dim=1) if target is not None and use_teacher else batch.labels
            total = total + loss.hard * hard_loss(logits, labels, self.config.train.label_smoothing)
        if target is not None and loss.soft > 0:
            total = total + loss.soft * soft_loss(logits, target.logits, self.config.temperature)
        if target is not None and loss.feature > 0:
            distances = self._distances(logits, features, target)
            total = total + loss.feature * (distances if self.weights is None else self.weights * distances).mean()
            recorded = {FEATURE_LOSS + block: one for block, one in zip(self.blocks, distances, strict=True)}
        return {LOSS: total, **recorded}

    def _distances(self, logits: Tensor, features: Sequence[Tensor], target: LogitsAndFeatures) -> Tensor:
        """Return the distance of each block over the images that the recipe counts: float32 (blocks,)."""
        agree = logits.argmax(dim=1) == target.logits.argmax(dim=1)
        counted = agree if self.config.features.only_agreeing else torch.ones_like(agree)
        return feature_losses(features, target.features, counted)
