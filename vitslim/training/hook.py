"""The interface by which a stage takes part in a training run between its steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class TrainingHook:
    """Follows a training run, may change gradients, weights and masks in place, and may end the run.

    This class does nothing; a stage overrides the methods that it needs.
    """

    @property
    def updates_weights(self) -> bool:
        """Whether the optimizer makes its steps; false: the hook only sees the gradients of every batch."""
        return True

    @property
    def uses_soft_loss(self) -> bool:
        """Whether the soft loss of a teacher counts in the next step."""
        return True

    def start(self, parameters: Mapping[str, nn.Parameter], masks: Mapping[str, torch.Tensor]) -> None:
        """Receive the trained parameters and their masks by name, both on the device of the training.

        Masks have the dtype of the parameters: 1 where a weight may change, 0 where it stays zero.
        """

    def after_backward(self) -> None:
        """Read or change the gradients of a step, before they are masked and clipped."""

    def after_update(self, step: int) -> bool:  # noqa: ARG002 - for those that override it
        """Act after step `step`, counted from 1; return whether the training ends here."""
        return False

    def state(self) -> Mapping[str, torch.Tensor]:
        """Return everything that must survive an interruption, by name."""
        return {}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Restore the result of `state`. Called after `start`."""
