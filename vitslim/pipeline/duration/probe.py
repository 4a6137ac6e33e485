"""Measure the rates of this machine that decide how long a run takes, in about two seconds."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np
import torch
from PIL import Image

PROBE_SECONDS = 0.9
"""Of each of the two rates."""
ROWS, REDUCE, COLUMNS = 1576, 384, 1536
"""Matmul of the first MLP layer of DeiT-S on eight images."""
PHOTO = (500, 375)
"""Width and height of a typical image of ImageNet."""
SIZE = (224, 224)
"""Width and height to which it is resized."""
COARSENESS = 4
"""Pixels per random value in each direction, which gives a JPEG file of about the size of a photograph's."""


@dataclass(frozen=True)
class Rates:
    """Of this machine, with all cores."""

    macs_per_s: float
    """Multiply-accumulates of a float32 matmul in PyTorch."""
    images_per_s: float
    """JPEG images of 500 x 375 pixels decoded and resized to 224 x 224."""


def probe() -> Rates:
    """Return the rates of this machine."""
    left, right = torch.randn(ROWS, REDUCE), torch.randn(REDUCE, COLUMNS)
    matmuls = _per_second(lambda: left @ right)
    file, cores = _photo(), os.cpu_count() or 1

    def decode(_: int) -> None:
        Image.open(io.BytesIO(file)).convert("RGB").resize(SIZE, Image.Resampling.BICUBIC)

    with ThreadPoolExecutor(cores) as pool:
        groups = _per_second(lambda: list(pool.map(decode, range(4 * cores))))
    return Rates(matmuls * ROWS * REDUCE * COLUMNS, groups * 4 * cores)


def _photo() -> bytes:
    width, height = PHOTO
    values = np.random.default_rng(0).integers(0, 256, (height // COARSENESS, width // COARSENESS, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).resize(PHOTO, Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def _per_second(run: Callable[[], object]) -> float:
    """Return the runs per second, after one run that is not counted."""
    run()
    count, start = 0, perf_counter()
    while perf_counter() - start < PROBE_SECONDS:
        run()
        count += 1
    return count / (perf_counter() - start)
