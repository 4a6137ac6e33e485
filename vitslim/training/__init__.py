"""Training and evaluation of a model on the run's data."""

from vitslim.training.batch import Batch, Objective
from vitslim.training.evaluate import agreement, predict, sqnr_db, top1
from vitslim.training.loop import train
from vitslim.training.losses import hard_loss, soft_loss
from vitslim.training.record import LOSS, SECONDS
from vitslim.training.waiting import STALL_SHARE

__all__ = [
    "LOSS",
    "SECONDS",
    "STALL_SHARE",
    "Batch",
    "Objective",
    "agreement",
    "hard_loss",
    "predict",
    "soft_loss",
    "sqnr_db",
    "top1",
    "train",
]
