"""Random variations of batches, on the device that trains. They draw from PyTorch's random numbers on the CPU, so that
every device sees the same."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

MIN_AREA = 0.1
MAX_ASPECT = 4 / 3
MAX_CHANGE = 0.4
"""The most that contrast and saturation change, as a fraction, and brightness, in standard deviations of a channel."""


def mixed(images: Tensor) -> Tensor:
    """Each image with the one before it, in shares drawn evenly from 0 to 1 (mixup, Zhang et al. 2018, section 2).

    float (b, C, H, W) before and after. In distillation more such mixtures keep helping, where the teacher sees the
    same (Beyer et al., "A good teacher is patient and consistent", 2022).
    """
    share = _beside(images, _uniform(len(images), 0, 1).view(-1, 1, 1, 1))
    return share * images + (1 - share) * images.roll(1, 0)


def strongly_varied(images: Tensor) -> Tensor:
    """A crop of at least 10 % of each normalized image, flipped half of the time, in other colors.

    float (b, C, H, W) before and after. Crops are enlarged to the size of the image, bilinearly.
    """
    return _recolored(functional.grid_sample(images, _crops(images), padding_mode="border", align_corners=False))


def _crops(images: Tensor) -> Tensor:
    """Where each pixel of a random crop lies in its image: (b, H, W, 2), from -1 to 1."""
    count = len(images)
    area, aspect = _uniform(count, MIN_AREA, 1), torch.exp(_uniform(count, -1, 1) * math.log(MAX_ASPECT))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    left, top = _uniform(count, -1, 1) * (1 - width), _uniform(count, -1, 1) * (1 - height)
    flip = torch.randint(0, 2, (count,)) * 2 - 1
    zero = torch.zeros(count)
    rows = torch.stack([flip * width, zero, left, zero, height, top], dim=1).view(count, 2, 3)
    return functional.affine_grid(_beside(images, rows), list(images.shape), align_corners=False)


def _recolored(images: Tensor) -> Tensor:
    """Another saturation, contrast and brightness for each image."""
    count = len(images)
    changes = _beside(images, _uniform(3 * count, -MAX_CHANGE, MAX_CHANGE).view(3, count, 1, 1, 1))
    saturation, contrast, brightness = 1 + changes[0], 1 + changes[1], changes[2]
    gray = images.mean(dim=1, keepdim=True)
    saturated = gray + saturation * (images - gray)
    middle = saturated.mean(dim=(1, 2, 3), keepdim=True)
    return middle + contrast * (saturated - middle) + brightness


def _beside(images: Tensor, numbers: Tensor) -> Tensor:
    """Numbers from the CPU on the device of the images, which goes on computing meanwhile."""
    return numbers.to(images.device, images.dtype, non_blocking=True)


def _uniform(count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(count)
