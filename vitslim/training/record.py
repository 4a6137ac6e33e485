"""Losses and times of the training steps, and the time that they waited for images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping

import torch

from vitslim.errors import StageError
from vitslim.ranks import rank_count
from vitslim.training.checkpoint import History
from vitslim.training.engine.collectives import sum_over_ranks
from vitslim.training.waiting import ImageWaits

LOSS, SECONDS, WAITS = "loss", "seconds", "wait_seconds"
READ_EVERY = 10
"""Steps between two readings. Each reading waits until the device has finished its work."""


class Record:
    """Scalars of every step by name, read from the device several steps at a time."""

    def __init__(
        self,
        history: History,
        steps: int,
        first: int = 0,
        show: Callable[[int, Mapping[str, float]], None] | None = None,
    ) -> None:
        """`history` holds the scalars of earlier steps; `steps` is the number of all steps, `first` of those before.

        `show` receives the number of a step and its scalars when they are read.
        """
        self.history, self.steps, self.first = history, steps, first
        self.unread: list[Mapping[str, torch.Tensor]] = []
        self.added_at = time.monotonic()
        self.waits, self.show = ImageWaits(), show

    @property
    def is_read(self) -> bool:
        """Whether the scalars of all steps were read."""
        return not self.unread

    def add(self, losses: Mapping[str, torch.Tensor], *, read: bool = False) -> None:
        """Record the scalars of one step, of which each rank has its own, the seconds since the step before, and those
        of `waits`.

        read: read all steps now. Raises StageError if a loss of the last steps is not finite.
        """
        before, self.added_at = self.added_at, time.monotonic()
        self.history.setdefault(SECONDS, []).append(self.added_at - before)
        self.history.setdefault(WAITS, []).append(self.waits.last_s)
        self.unread.append({name: value.detach() for name, value in losses.items()})
        if read or len(self.unread) == READ_EVERY:
            self.read()

    def read(self) -> History:
        """Return the scalars of all steps, averaged over the ranks.

        Raises StageError if a loss of the last steps is not finite.
        """
        if not self.unread:
            return self.history
        rows = torch.stack([torch.stack([value.float() for value in losses.values()]) for losses in self.unread])
        for losses, values in zip(self.unread, (sum_over_ranks(rows) / rank_count()).tolist(), strict=True):
            for name, value in zip(losses, values, strict=True):
                self.history.setdefault(name, []).append(value)
            self._require_finite()
        if self.show is not None:
            latest = {name: self.history[name][-1] for name in self.unread[-1]}
            self.show(self.first + len(self.history[LOSS]), latest)
        self.unread.clear()
        return self.history

    def _require_finite(self) -> None:
        step, loss = self.first + len(self.history[LOSS]), self.history[LOSS][-1]
        if not math.isfinite(loss):
            raise StageError(
                f"training stopped at step {step} of {self.steps}: the loss is {loss}",
                hint="lower train.lr, or raise train.warmup",
            )
