"""What training records of its steps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch

from vitslim.errors import StageError
from vitslim.training.checkpoint import History

LOSS, SECONDS = "loss", "seconds"
READ_EVERY = 10
"""Steps between two readings: each waits until the device has done all that it was asked to do."""


class Record:
    """Scalars of every step by name, read from the device some steps at a time."""

    def __init__(self, history: History, steps: int) -> None:
        """`history` is what earlier steps recorded, of `steps` in all."""
        self.history, self.steps = history, steps
        self.unread: list[Mapping[str, torch.Tensor]] = []
        self.added_at = time.monotonic()

    def add(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Record one step, and the seconds since the one before. Raises StageError when a loss among the last steps is
        no finite number."""
        before, self.added_at = self.added_at, time.monotonic()
        self.history.setdefault(SECONDS, []).append(self.added_at - before)
        self.unread.append({name: value.detach() for name, value in losses.items()})
        if len(self.unread) == READ_EVERY:
            self.read()

    def read(self) -> History:
        """Values of all steps. Raises StageError when a loss among the last ones is no finite number."""
        for losses in self.unread:
            values = torch.stack([value.float() for value in losses.values()])
            for name, value in zip(losses, values.tolist(), strict=True):
                self.history.setdefault(name, []).append(value)
            self._require_finite()
        self.unread.clear()
        return self.history

    def _require_finite(self) -> None:
        step, loss = len(self.history[LOSS]), self.history[LOSS][-1]
        if not math.isfinite(loss):
            raise StageError(
                f"training stopped at step {step} of {self.steps}: the loss is {loss}",
                hint="lower train.lr, or raise train.warmup",
            )
