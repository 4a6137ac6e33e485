"""Convert images that are normalized for one model into the input of another."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from vitslim.graph.model_graph import ModelSource


def describe_conversion(student: ModelSource, teacher: ModelSource) -> str:
    """Return how images of the student are converted for the teacher, as a clause; empty if they are not."""
    steps = []
    if teacher.image[1:] != student.image[1:]:
        steps.append(f"resized to {teacher.image[1]} x {teacher.image[2]}")
    ours, theirs = student.preprocessing, teacher.preprocessing
    if (ours.mean, ours.std) != (theirs.mean, theirs.std):
        steps.append("normalized by its mean and standard deviation")
    return f"images for {teacher.timm} are {' and '.join(steps)}" if steps else ""


def input_conversion(student: ModelSource, teacher: ModelSource) -> Callable[[Tensor], Tensor]:
    """Return a function from images of the student, float (b, C, H, W), to the same images for the teacher.

    It resizes them with bicubic interpolation and antialiasing, and replaces the student's mean and standard deviation
    by the teacher's. Both models have C channels. Crop and padding stay the student's, so that both see the same part
    of an image. Equal sizes and normalizations give the images themselves.
    """
    ours, theirs = student.preprocessing, teacher.preprocessing
    same_values = (ours.mean, ours.std) == (theirs.mean, theirs.std)
    size = teacher.image[1:]

    def convert(images: Tensor) -> Tensor:
        if images.shape[2:] != size:
            images = functional.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False)
        if same_values:
            return images
        values = (ours.mean, ours.std, theirs.mean, theirs.std)
        mean, std, new_mean, new_std = (torch.tensor(one).to(images).view(1, -1, 1, 1) for one in values)
        # One multiplication and one addition for each pixel.
        return images * (std / new_std) + (mean - new_mean) / new_std

    return convert
