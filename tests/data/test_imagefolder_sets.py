from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform

from vitslim.data import batches, load_data
from vitslim.data.dataset import UNLABELED
from vitslim.data.files.decode import read_image
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelSource
from vitslim.recipe.schema import PIXELS_MAX, Data


def folder_data(root: Path, **more: object) -> Data:
    return Data.model_validate({"kind": "imagefolder", "root": str(root), **more})


def timm_images(root: Path, files: list[str], source: ModelSource) -> torch.Tensor:
    """Transform the files with timm's own evaluation transform."""
    preprocessing = source.preprocessing
    transform = create_transform(
        input_size=source.image,
        mean=preprocessing.mean,
        std=preprocessing.std,
        interpolation=preprocessing.interpolation,
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
    )
    return torch.stack([transform(Image.open(root / file).convert("RGB")) for file in files])


@pytest.mark.parametrize(
    ("interpolation", "crop_mode"),
    [("bicubic", "center"), ("bilinear", "center"), ("bicubic", "squash"), ("bicubic", "border")],
)
def test_images_equal_timms_transform_exactly_in_every_iteration(
    image_root: Path, folder_source: ModelSource, interpolation: str, crop_mode: str
) -> None:
    changed = replace(folder_source.preprocessing, interpolation=interpolation, crop_mode=crop_mode)
    source = replace(folder_source, preprocessing=changed)
    Image.effect_noise((160, 40), 90).convert("RGB").save(image_root / "val" / "bread" / "wide.png")
    val = load_data(folder_data(image_root), source, 0).val
    expected = timm_images(image_root / "val", list(val.source.source.images.files), source)
    for batch in (2, 9, 4):
        assert torch.equal(torch.cat([images for images, _ in batches(val, batch)]), expected)
    assert torch.equal(val[4][0], expected[4])


def test_sorted_folders_are_the_classes(image_root: Path, folder_source: ModelSource) -> None:
    data = load_data(folder_data(image_root), folder_source, 0)
    assert data.val.class_names == ("apple", "bread", "cheese")
    assert data.val.labels == (0, 0, 0, 1, 1, 1, 2, 2, 2)
    assert Counter(data.train.labels) == {0: 4, 1: 6, 2: 8}


def test_wordnet_folders_of_a_1000_class_model_map_to_imagenet(
    tmp_path: Path, folder_source: ModelSource, write_images: Callable[..., None]
) -> None:
    info = ImageNetInfo()
    names = [info.index_to_label_name(index) for index in (999, 0, 134)]
    for split in ("train", "val"):
        for name in names:
            write_images(tmp_path / split / name, 2)
    write_images(tmp_path / "more" / info.index_to_label_name(517), 1)
    config = folder_data(tmp_path, also_evaluate={"more": str(tmp_path / "more")})
    data = load_data(config, replace(folder_source, classes=1000), 0)
    assert data.val.labels == (0, 0, 134, 134, 999, 999)
    assert data.val.class_names[0] == "tench, Tinca tinca"
    assert data.extra["more"].labels == (517,)


def test_further_sets_of_a_feature_extractor_may_have_other_classes(
    image_root: Path, folder_source: ModelSource, write_images: Callable[..., None]
) -> None:
    for name in ("apple", "zebra"):
        write_images(image_root / "more" / name, 2)
    config = folder_data(image_root, also_evaluate={"more": str(image_root / "more")})
    headless = load_data(config, replace(folder_source, classes=0), 0)
    assert headless.extra["more"].labels == (UNLABELED,) * 4
    assert headless.val.labels == (0, 0, 0, 1, 1, 1, 2, 2, 2)
    assert any(note.startswith("more: used without labels") for note in headless.notes)
    assert "classes: one for each folder of the training images; the model has no outputs for them" in headless.notes
    with pytest.raises(InputError, match="no classes of the model: zebra"):
        load_data(config, folder_source, 0)


def test_wordnet_folders_of_a_small_model_get_readable_names(
    tmp_path: Path, folder_source: ModelSource, write_images: Callable[..., None]
) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / split / "n01440764", 1)
        write_images(tmp_path / split / "zebra", 1)
    data = load_data(folder_data(tmp_path), replace(folder_source, classes=2), 0)
    assert data.val.labels == (0, 1)
    assert data.val.class_names == ("tench, Tinca tinca", "zebra")


def test_gray_and_palette_and_transparent_files_decode(image_root: Path, folder_source: ModelSource) -> None:
    for number, mode in enumerate(("L", "P", "RGBA", "LA", "1", "I;16")):
        Image.new(mode, (50, 40)).save(image_root / "val" / "apple" / f"mode{number}.png")
    val = load_data(folder_data(image_root), folder_source, 0).val
    assert sum(len(labels) for _, labels in batches(val, 4)) == 15
    gray = replace(
        folder_source, image=(1, 32, 32), preprocessing=replace(folder_source.preprocessing, mean=(0.5,), std=(0.5,))
    )
    assert load_data(folder_data(image_root), gray, 0).val[0][0].shape == (1, 32, 32)


GRADIENT = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.mark.parametrize(
    ("values", "suffix"),
    [
        (np.rint(GRADIENT * 65535).astype(np.uint16), "png"),
        (np.rint(GRADIENT * 65535).astype(np.uint16), "tif"),
        (np.rint(GRADIENT * 65535).astype(np.int32), "tif"),
        (np.rint(GRADIENT * 255).astype(np.int32), "tif"),
        (GRADIENT.astype(np.float32), "tif"),
        ((GRADIENT * 255).astype(np.float32), "tif"),
        ((GRADIENT * 2 - 1).astype(np.float32), "tif"),
    ],
)
def test_values_of_more_than_8_bits_are_scaled_by_their_range(values: np.ndarray, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(values).save(path)
    found = np.asarray(read_image(path, "L", PIXELS_MAX), dtype=np.int64)
    assert np.abs(found - np.rint(GRADIENT * 255)).max() <= 1
    assert (np.asarray(read_image(path, "RGB", PIXELS_MAX)) == found[..., None]).all()


def test_images_are_turned_upright(tmp_path: Path) -> None:
    image = Image.effect_noise((40, 20), 90)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    assert (
        read_image(tmp_path / "turned.png", "L", PIXELS_MAX).tobytes()
        == image.transpose(Image.Transpose.ROTATE_270).tobytes()
    )


def test_evaluation_subset_is_balanced_and_ignores_the_seed(image_root: Path, folder_source: ModelSource) -> None:
    config = folder_data(image_root, eval_images=6, calibration=7)
    first, second = load_data(config, folder_source, 0), load_data(config, folder_source, 9)
    assert first.val.indices == second.val.indices
    assert Counter(first.val.labels) == {0: 2, 1: 2, 2: 2}
    assert sorted(Counter(first.calibration.labels).values()) == [2, 2, 3]
    assert first.calibration.split == "calibration"


def test_augmentation_is_reproducible_and_keeps_the_size(image_root: Path, folder_source: ModelSource) -> None:
    train = load_data(folder_data(image_root), folder_source, 0).train
    images = [torch.cat([images for images, _ in batches(train.augmented(seed), 5)]) for seed in (1, 1, 2)]
    assert images[0].shape == (18, 3, 32, 32)
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])


def test_digest_follows_names_and_sizes(image_root: Path, folder_source: ModelSource) -> None:
    before = load_data(folder_data(image_root), folder_source, 0)
    assert before.digest == load_data(folder_data(image_root), folder_source, 0).digest
    added = image_root / "val" / "bread" / "new.png"
    Image.new("RGB", (40, 40)).save(added)
    after = load_data(folder_data(image_root), folder_source, 0)
    assert after.train.digest == before.train.digest
    assert after.val.digest != before.val.digest
    assert after.digest != before.digest
