"""Decoded images on disk: equal to decoding, shared, limited, and never trusted when damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vitslim.data import Dataset, imagefolder, load_data
from vitslim.data.cache.pixel_file import HEADER, SUFFIX, PixelFile
from vitslim.errors import VitslimError
from vitslim.graph.model_graph import ModelSource
from vitslim.progress import Silent
from vitslim.recipe.schema import Data

IMAGE = 6
"""Bytes of an image."""
RECORD = HEADER.size + IMAGE


class Messages(Silent):
    """Keeps the messages."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "vitslim" / "pixels"


Load = Callable[..., Dataset]


@pytest.fixture
def load(image_root: Path, folder_source: ModelSource) -> Load:
    def train(messages: Messages | None = None, crop_pct: float = 0.9, **keys: object) -> Dataset:
        config = Data.model_validate({"kind": "imagefolder", "root": str(image_root), **keys})
        source = replace(folder_source, preprocessing=replace(folder_source.preprocessing, crop_pct=crop_pct))
        return load_data(config, source, 0, messages or Messages()).train

    return train


def refuse(*_: object) -> None:
    raise VitslimError("decoded")


def test_a_later_run_reads_equal_images_without_decoding(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load(cache_gb=0).stacked()
    messages = Messages()
    assert torch.equal(load(messages).stacked(), expected)
    monkeypatch.setattr(imagefolder, "read_image", refuse)
    again = load(messages)
    assert torch.equal(again.stacked(), expected)
    assert torch.equal(torch.cat([images for images, _ in again.batches(5)]), expected)
    assert not [one for one in messages.said if "decoded images" in one]


def test_augmented_images_are_decoded_from_the_files(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load()
    dataset.stacked()
    monkeypatch.setattr(imagefolder, "read_image", refuse)
    with pytest.raises(VitslimError, match="decoded"):
        dataset.augmented(1).stacked()


def test_other_preprocessing_has_other_images(load: Load, cache: Path) -> None:
    load().stacked()
    assert torch.equal(load(crop_pct=0.5).stacked(), load(crop_pct=0.5, cache_gb=0).stacked())
    assert len(list(cache.glob(f"*{SUFFIX}"))) == 4  # a training and a validation set each


def test_damaged_images_are_decoded_again_with_a_message(load: Load, cache: Path) -> None:
    expected = load().stacked()
    path = max(cache.glob(f"*{SUFFIX}"), key=lambda one: one.stat().st_size)
    content = bytearray(path.read_bytes())
    content[HEADER.size + 40] ^= 1
    content[-1] ^= 1
    path.write_bytes(content)
    messages = Messages()
    assert torch.equal(load(messages).stacked(), expected)
    assert len([one for one in messages.said if "damaged" in one]) == 1
    assert torch.equal(load(later := Messages()).stacked(), expected)
    assert not [one for one in later.said if "damaged" in one]
    os.truncate(path, 1000)
    assert torch.equal(load().stacked(), expected)


@pytest.mark.parametrize("keys", [{}, {"cache_gb": 1e-5}])
def test_without_room_or_folder_images_are_decoded_with_a_message(
    load: Load, cache: Path, keys: dict[str, float]
) -> None:
    expected = load(cache_gb=0).stacked()
    assert not cache.exists()
    if not keys:
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_bytes(b"")
    messages = Messages()
    assert torch.equal(load(messages, **keys).stacked(), expected)
    assert [one for one in messages.said if ("fill the 1e-05 GB" if keys else "cannot be written") in one]


def pixel_file(path: Path, limit: int = 1000, messages: Messages | None = None) -> PixelFile:
    return PixelFile(path, IMAGE, limit, (messages or Messages()).say)


def image(value: int) -> memoryview:
    return memoryview(bytes([value]) * IMAGE)


def test_two_writers_share_a_file_and_keep_each_image_once(tmp_path: Path) -> None:
    path = tmp_path / f"a{SUFFIX}"
    first, second = pixel_file(path), pixel_file(path)
    for index in range(4):
        assert first.append(index, image(index))
    assert second.read(3) is None  # added after it was opened
    assert second.append(3, image(3)) and second.append(7, image(7))
    assert path.stat().st_size == 5 * RECORD
    assert [pixel_file(path).read(index) for index in (0, 3, 7)] == [image(0), image(3), image(7)]


def test_a_record_that_its_writer_did_not_finish_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / f"a{SUFFIX}"
    pixel_file(path).append(1, image(1))
    with path.open("ab") as file:
        file.write(b"\0" * (RECORD - 1))
    again = pixel_file(path)
    assert again.append(2, image(2))
    assert [pixel_file(path).read(index) for index in (1, 2)] == [image(1), image(2)]
    assert path.stat().st_size == 2 * RECORD


def test_the_least_recently_used_images_make_room(tmp_path: Path) -> None:
    old, recent, new = (tmp_path / f"{name}{SUFFIX}" for name in ("old", "recent", "new"))
    for age, path in ((20, old), (10, recent)):
        pixel_file(path).append(0, image(0))
        os.utime(path, (1e9 - age, 1e9 - age))
    messages = Messages()
    file = pixel_file(new, 2 * RECORD, messages)
    assert file.append(0, image(1))
    assert (old.exists(), recent.exists(), messages.said) == (False, True, [])
    assert file.append(1, image(2))
    assert not recent.exists()
    assert not file.append(2, image(3))
    assert not file.append(3, image(3))
    assert len(messages.said) == 1
    assert file.read(1) == image(2)


def test_a_file_that_was_deleted_while_in_use_is_still_read_but_no_longer_written(tmp_path: Path) -> None:
    path, messages = tmp_path / f"a{SUFFIX}", Messages()
    file = pixel_file(path, messages=messages)
    file.append(0, image(1))
    path.unlink()
    assert file.read(0) == image(1)
    assert not file.append(1, image(1))
    assert "deleted meanwhile" in messages.said[0]
