"""What the approximations of a simulated accelerator do to a model: accuracy, and counts of work image by image."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from vitslim.results.token_picture import TokenPicture
from vitslim.results.value import Value


class Distribution(Value):
    """Values over images."""

    name: str
    mean: float
    minimum: float
    p10: float
    median: float
    p90: float
    maximum: float


class LayerWork(Value):
    """Counts of one layer over images."""

    layer: str
    counts: tuple[Distribution, ...]


class ApproximateAccuracy(Value):
    """Top-1 accuracy of one model as an accelerator computes it."""

    dataset: str
    n: int
    """Number of images."""
    top1: float | None
    """Fraction in [0, 1]."""
    exact_top1: float | None
    """Of the same model without the approximations."""
    agreement: float
    """Fraction of images with the same top-1 class as the same model without the approximations."""
    provenance: Literal["simulated"] = "simulated"


class AcceleratorResult(Value):
    """One model on one simulated accelerator that changes results."""

    backend: str
    accuracies: tuple[ApproximateAccuracy, ...]
    distributions: tuple[Distribution, ...] = Field(())
    """Of each image of `val`: cycles, DRAM bytes, energy, and fractions of the work."""
    layers: tuple[LayerWork, ...] = Field(())
    """Counts of each layer over the images of `val`."""
    pictures: tuple[TokenPicture, ...] = Field(())
    """Important tokens after each layer on sample images; empty if all tokens are treated alike."""
    picture_note: str = ""
    """Meaning of kept and other tokens in the pictures."""
