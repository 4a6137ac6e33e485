"""Small images for reports: size, format, and nothing but pixels."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from vitslim.data import load_data, thumbnail
from vitslim.graph.model_graph import ModelSource
from vitslim.recipe.schema import Data


def decoded(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


def gradient(channels: int, height: int, width: int) -> torch.Tensor:
    rows = torch.linspace(0, 1, height)[:, None].expand(height, width)
    return rows.expand(channels, -1, -1)


def test_a_photo_becomes_a_small_jpeg() -> None:
    media_type, file = thumbnail((gradient(3, 224, 224) * 255).to(torch.uint8), 112)
    image = decoded(file)
    assert (media_type, image.format, image.mode, image.size) == ("image/jpeg", "JPEG", "RGB", (112, 112))
    assert len(file) < 8_000
    assert np.abs(np.asarray(image)[:, 0, 0] - np.linspace(0, 255, 112)).max() < 4


@pytest.mark.parametrize("channels", [1, 2])
def test_other_numbers_of_channels_become_a_gray_png_that_is_not_enlarged(channels: int) -> None:
    media_type, file = thumbnail(gradient(channels, 32, 24), 112)
    image = decoded(file)
    assert (media_type, image.format, image.mode, image.size) == ("image/png", "PNG", "L", (24, 32))
    assert np.array_equal(np.asarray(image)[:, 0], np.rint(np.linspace(0, 255, 32)))


def test_metadata_of_the_source_is_not_copied(image_root: Path, folder_source: ModelSource) -> None:
    path = image_root / "val" / "apple" / "0.JPEG"
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x010E] = "SECRET"
        image.save(path, exif=exif, comment=b"SECRET")
    assert b"SECRET" in path.read_bytes()
    data = load_data(Data(kind="imagefolder", root=str(image_root)), folder_source, seed=0)
    _, file = thumbnail(data.val.pixels(0), 112)
    assert b"SECRET" not in file
    assert b"Exif" not in file
