"""Losses and times of the training steps."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

import torch

from vitslim.errors import StageError
from vitslim.training.checkpoint import History

LOSS, SECONDS = "loss", "seconds"
READ_EVERY = 10
"""Steps between two readings. Each reading waits until the device has finished its work."""


class Record:
    """Scalars of every step by name, read from the device several steps at a time."""

    def __init__(self, history: History, steps: int, first: int = 0) -> None:
        """`history` holds the scalars of earlier steps; `steps` is the number of all steps, `first` of those before."""
        self.history, self.steps, self.first = history, steps, first
        self.unread: list[Mapping[str, torch.Tensor]] = []
        self.added_at = time.monotonic()

    def add(self, losses: Mapping[str, torch.Tensor]) -> None:
        """Record the scalars of one step, and the seconds since the step before.

        Raises StageError if a loss of the last steps is not finite.
        """
        before, self.added_at = self.added_at, time.monotonic()
        self.history.setdefault(SECONDS, []).append(self.added_at - before)
        self.unread.append({name: value.detach() for name, value in losses.items()})
        if len(self.unread) == READ_EVERY:
            self.read()

    def read(self) -> History:
        """Return the scalars of all steps. Raises StageError if a loss of the last steps is not finite."""
        for losses in self.unread:
            values = torch.stack([value.float() for value in losses.values()])
            for name, value in zip(losses, values.tolist(), strict=True):
                self.history.setdefault(name, []).append(value)
            self._require_finite()
        self.unread.clear()
        return self.history

    def _require_finite(self) -> None:
        step, loss = self.first + len(self.history[LOSS]), self.history[LOSS][-1]
        if not math.isfinite(loss):
            raise StageError(
                f"training stopped at step {step} of {self.steps}: the loss is {loss}",
                hint="lower train.lr, or raise train.warmup",
            )
