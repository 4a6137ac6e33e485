"""Training with a teacher: features, objective, teachers, and the training of a student."""

from vitslim.training.distillation.features import FEATURE_LOSS, block_weights, select_blocks
from vitslim.training.distillation.student import train_with_teacher, weight_problems

__all__ = ["FEATURE_LOSS", "block_weights", "select_blocks", "train_with_teacher", "weight_problems"]
