"""Random augmentation of whole batches on the training device.

All random numbers come from PyTorch's generator on the CPU, so that every device draws the same ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.nn import functional

from vitslim.graph.ops.image_draws import draw_for_images
from vitslim.random_state import seeded_random

MIN_AREA = 0.1
"""Smallest area of a crop, as a fraction of the image."""
MAX_ASPECT = 4 / 3
"""Largest aspect ratio of a crop relative to the image."""
MAX_CHANGE = 0.4
"""Largest change of contrast and saturation, as a fraction, and of brightness, in standard deviations of a channel."""


def mix_images(images: Tensor, labels: Tensor, classes: int, mixup: float, cutmix: float) -> tuple[Tensor, Tensor]:
    """Mix image i and its label with image `b - 1 - i`, by timm's mixup and cutmix.

    images: float (b, C, H, W). labels: int64 (b,). Returns images of the same shape, and targets float32 (b, classes)
    whose rows sum to 1. `mixup` and `cutmix` are the parameters of the Beta distribution of the weight, drawn once for
    the batch as DeiT does, so that all ranks draw the same one; zero turns one of them off. The last image of an odd
    batch is not mixed. Sources: mixup (Zhang et al., 2018), CutMix (Yun et al., 2019).
    """
    even = len(images) - len(images) % 2
    mix = Mixup(mixup, cutmix, mode="batch", label_smoothing=0.0, num_classes=classes)  # type: ignore[no-untyped-call]
    with _seeded_numpy():
        mixed, targets = mix(images[:even].clone(), labels[:even])
    unmixed = functional.one_hot(labels[even:], classes).to(targets)
    return torch.cat([mixed, images[even:]]), torch.cat([targets, unmixed])


@contextmanager
def _seeded_numpy() -> Iterator[None]:
    """Seed NumPy's global generator, which timm uses, from PyTorch's; the previous state is restored on exit."""
    state = np.random.get_state()
    np.random.seed(int(torch.randint(2**31, ())))
    try:
        yield
    finally:
        np.random.set_state(state)


def erase(images: Tensor, probability: float) -> Tensor:
    """Replace a random rectangle of some images by noise, by timm's random erasing (Zhong et al., AAAI 2020).

    Normalized float (b, C, H, W) to the same shape. probability: for each image, in [0, 1].
    """
    seeds = draw_for_images(lambda count: torch.randint(2**31, (count,)), len(images)).tolist()
    erased = images.clone()
    erasing = RandomErasing(probability, mode="pixel", device=images.device)  # type: ignore[no-untyped-call]
    # Ranks have other images, and each image another number of draws, but all ranks must go on with the same state.
    with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
        for image, seed in zip(erased, seeds, strict=True):
            torch.manual_seed(seed)
            with seeded_random(seed):
                erasing(image)
    return erased


def augment_strongly(images: Tensor) -> Tensor:
    """Crop each normalized image to at least 10 % of its area, flip half of them, and jitter their colors.

    Float (b, C, H, W) to the same shape. Crops are resized to the size of the image, bilinearly.
    """
    return _jitter_colors(random_crops(images))


def random_crops(images: Tensor) -> Tensor:
    """Return a random crop of each image, flipped half of the time and resized to its size: float (b, C, H, W)."""
    return functional.grid_sample(images, _crop_grids(images), padding_mode="border", align_corners=False)


def _crop_grids(images: Tensor) -> Tensor:
    """Return the coordinates in the image of each pixel of a random crop: (b, H, W, 2), in [-1, 1]."""
    count = len(images)
    area, aspect = _uniform(count, MIN_AREA, 1), torch.exp(_uniform(count, -1, 1) * math.log(MAX_ASPECT))
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    left, top = _uniform(count, -1, 1) * (1 - width), _uniform(count, -1, 1) * (1 - height)
    flip = draw_for_images(lambda images: torch.randint(0, 2, (images,)), count) * 2 - 1
    zero = torch.zeros(count)
    rows = torch.stack([flip * width, zero, left, zero, height, top], dim=1).view(count, 2, 3)
    return functional.affine_grid(_to_device_of(images, rows), list(images.shape), align_corners=False)


def _jitter_colors(images: Tensor) -> Tensor:
    """Change saturation, contrast and brightness of each image at random."""
    count = len(images)
    values = torch.stack([_uniform(count, -MAX_CHANGE, MAX_CHANGE) for _ in range(3)])
    changes = _to_device_of(images, values.view(3, count, 1, 1, 1))
    saturation, contrast, brightness = 1 + changes[0], 1 + changes[1], changes[2]
    gray = images.mean(dim=1, keepdim=True)
    saturated = gray + saturation * (images - gray)
    mean = saturated.mean(dim=(1, 2, 3), keepdim=True)
    return mean + contrast * (saturated - mean) + brightness


def _to_device_of(images: Tensor, values: Tensor) -> Tensor:
    """Copy values from the CPU to the device and dtype of the images, without waiting for the device."""
    return values.to(images.device, images.dtype, non_blocking=True)


def _uniform(count: int, low: float, high: float) -> Tensor:
    return low + (high - low) * draw_for_images(torch.rand, count)
