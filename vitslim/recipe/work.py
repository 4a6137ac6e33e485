"""The work that a stage does on images, from which `plan` estimates its duration."""

from __future__ import annotations

from dataclasses import dataclass

TYPICAL_BLOCKS = 12
"""Blocks of a model, where only the recipe is known."""


@dataclass(frozen=True)
class ImageCounts:
    """Images of a run."""

    train: int
    calibration: int
    evaluated: int
    """Of all evaluation sets together."""


@dataclass(frozen=True)
class Work:
    """Passes of one image through the model before the stage, and files."""

    forward: float = 0.0
    """Passes without gradients in PyTorch."""
    training: float = 0.0
    """Passes forward and backward."""
    runtime: float = 0.0
    """Passes in ONNX Runtime."""
    decoded: float = 0.0
    """Images decoded besides the calibration and evaluation sets."""
    files: float = 0.0
    """ONNX files written besides that of the stage."""

    def __add__(self, other: Work) -> Work:
        """Return the sum."""
        return Work(
            self.forward + other.forward, self.training + other.training, self.runtime + other.runtime,
            self.decoded + other.decoded, self.files + other.files,
        )  # fmt: skip
