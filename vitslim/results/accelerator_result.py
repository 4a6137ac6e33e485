"""What the approximations of a simulated accelerator do to a model: accuracy, and counts of work image by image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
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

    @classmethod
    def of(cls, name: str, values: npt.ArrayLike | Sequence[float]) -> Distribution:
        """Return the distribution of one value for each image."""
        found = np.asarray(values, np.float64)
        low, p10, median, p90, high = np.quantile(found, (0, 0.1, 0.5, 0.9, 1)).tolist()
        return cls(name=name, mean=float(found.mean()), minimum=low, p10=p10, median=median, p90=p90, maximum=high)


class LayerWork(Value):
    """Counts of one layer over images."""

    layer: str
    counts: tuple[Distribution, ...]


class ApproximateAccuracy(Value):
    """Top-1 accuracy of one model as an accelerator computes it."""

    dataset: str
    n: int
    """Number of images."""
    top1: float
    """Fraction in [0, 1]."""
    exact_top1: float
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
