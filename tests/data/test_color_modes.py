"""Pixels of palette, CMYK, transparent and gray files, as the loaders of timm and torchvision read them."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitslim.data.files.decode import read_image
from vitslim.recipe.schema import PIXELS_MAX


def palette(transparent: bool) -> Image.Image:
    """Two pixels of the colors 1 and 2 of a palette, of which the first may be transparent."""
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 10, 30, 5, 250, 90])
    image.putdata([1, 2])
    if transparent:
        image.info["transparency"] = bytes([255, 0, 128])
    return image


def of_pixels(mode: str, *pixels: object) -> Image.Image:
    image = Image.new(mode, (len(pixels), 1))
    image.putdata(pixels)
    return image


CASES = {
    "palette": (palette(False), "png", [(200, 10, 30), (5, 250, 90)]),
    "palette with transparency": (palette(True), "png", [(200, 10, 30), (5, 250, 90)]),
    "palette gif": (palette(False), "gif", [(200, 10, 30), (5, 250, 90)]),
    "transparent": (of_pixels("RGBA", (1, 2, 3, 0), (9, 8, 7, 128)), "png", [(1, 2, 3), (9, 8, 7)]),
    "gray with alpha": (of_pixels("LA", (70, 0), (200, 255)), "png", [(70,) * 3, (200,) * 3]),
    "gray": (of_pixels("L", 3, 250), "png", [(3,) * 3, (250,) * 3]),
    "bits": (of_pixels("1", 0, 255), "png", [(0,) * 3, (255,) * 3]),
    "cmyk": (of_pixels("CMYK", (0, 255, 255, 0), (0, 0, 0, 255)), "tif", [(255, 0, 0), (0, 0, 0)]),
}


@pytest.mark.parametrize("case", CASES)
def test_pixels_have_their_colors(case: str, tmp_path: Path) -> None:
    image, suffix, expected = CASES[case]
    image.save(tmp_path / f"image.{suffix}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        color, gray = (read_image(tmp_path / f"image.{suffix}", mode, PIXELS_MAX) for mode in ("RGB", "L"))
    assert np.asarray(color)[0].tolist() == [list(pixel) for pixel in expected]
    luma = np.array(expected) @ [0.299, 0.587, 0.114]
    assert np.abs(np.asarray(gray)[0] - luma).max() <= 1


def test_a_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    found = np.asarray(read_image(tmp_path / "red.jpg", "RGB", PIXELS_MAX), dtype=int)
    assert np.abs(found - [255, 0, 0]).max() <= 3
