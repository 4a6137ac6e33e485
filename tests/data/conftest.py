"""A generated image folder: three classes, odd image sizes, two formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitslim.graph.model_graph import ModelSource, Preprocessing

CLASSES = ("apple", "bread", "cheese")


def _write(folder: Path, count: int, seed: int = 0) -> None:
    """Write `count` random images of differing sizes, JPEG and PNG in turn."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(seed)
    for number in range(count):
        pixels = generator.integers(0, 256, size=(9, 12 + number, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((60 + 7 * number, 45))
        image.save(folder / f"{number}.{'png' if number % 2 else 'JPEG'}")


@pytest.fixture
def write_images() -> Callable[..., None]:
    """`write_images(folder, count)` makes a class folder."""
    return _write


@pytest.fixture
def image_root(tmp_path: Path) -> Path:
    """`train` with 4, 6 and 8 images of three classes, `val` with 3 each."""
    root = tmp_path / "food"
    for place, name in enumerate(CLASSES):
        _write(root / "train" / name, 4 + 2 * place, seed=place)
        _write(root / "val" / name, 3, seed=10 + place)
    return root


@pytest.fixture
def folder_source() -> ModelSource:
    """A model of three classes that takes 32 px RGB images."""
    preprocessing = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", 0.9)
    return ModelSource("vit_tiny_patch16_224", {"img_size": 32}, (3, 32, 32), 3, preprocessing)
