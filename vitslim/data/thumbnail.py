"""Small images for reports."""

from __future__ import annotations

import io
from typing import Literal

import numpy as np
from PIL import Image

from vitslim.data.source import Pixels

JPEG_QUALITY = 80

MediaType = Literal["image/png", "image/jpeg"]


def thumbnail(pixels: Pixels, side: int) -> tuple[MediaType, bytes]:
    """Return a decoded image as a file of at most `side` pixels in height and width, which is not enlarged.

    pixels: (C, H, W), uint8, or float in [0, 1]. Three channels become a JPEG in RGB; of any other number the first
    becomes a gray PNG. The file holds pixels only, and no metadata of the source image.
    """
    values = pixels.cpu().numpy()
    if values.dtype != np.uint8:
        values = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
    is_rgb = len(values) == 3
    image = Image.fromarray(np.ascontiguousarray(values.transpose(1, 2, 0)) if is_rgb else values[0])
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if is_rgb:
        image.save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
        return "image/jpeg", file.getvalue()
    image.save(file, "PNG", optimize=True)
    return "image/png", file.getvalue()
