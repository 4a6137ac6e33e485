"""Every invalid image folder gives a message of one sentence, a hint, and exit code 5."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vitslim.data import load_data
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelSource
from vitslim.recipe.schema import Data


def refused(config: Data, source: ModelSource, message: str) -> InputError:
    with pytest.raises(InputError, match=message) as caught:
        load_data(config, source, 0)
    assert caught.value.exit_code == 5
    assert caught.value.hint
    assert "\n" not in caught.value.message
    return caught.value


def no_val(root: Path) -> None:
    shutil.rmtree(root / "val")


def no_train(root: Path) -> None:
    shutil.rmtree(root / "train")


def empty_train(root: Path) -> None:
    shutil.rmtree(root / "train")
    (root / "train").mkdir()


def class_without_images(root: Path) -> None:
    for path in (root / "train" / "bread").iterdir():
        path.rename(path.with_suffix(".txt"))


def zero_bytes(root: Path) -> None:
    (root / "val" / "apple" / "1.png").write_bytes(b"")


def no_image(root: Path) -> None:
    (root / "val" / "apple" / "1.png").write_text("this is text")


def val_is_a_file(root: Path) -> None:
    shutil.rmtree(root / "val")
    (root / "val").write_text("")


def unknown_class_in_val(root: Path) -> None:
    shutil.copytree(root / "val" / "apple", root / "val" / "dates")


def fourth_class(root: Path) -> None:
    shutil.copytree(root / "train" / "apple", root / "train" / "dates")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (no_val, r"food has no validation set val/"),
        (no_train, r"train does not exist"),
        (shutil.rmtree, r"food does not exist"),
        (val_is_a_file, r"val is not a folder"),
        (empty_train, r"train has no class folders and no images"),
        (class_without_images, r"class folders without images: bread"),
        (zero_bytes, r"1 image cannot be read: .*apple/1\.png \(0 bytes\)"),
        (no_image, r"1 image cannot be read: .*apple/1\.png \(unknown image format\)"),
        (unknown_class_in_val, r"val has labels that are no classes of the model: dates"),
        (fourth_class, r"4 class folders, the model has 3 classes"),
    ],
)
def test_invalid_folders_are_refused(
    image_root: Path, folder_source: ModelSource, damage: Callable[[Path], None], message: str
) -> None:
    damage(image_root)
    refused(Data(kind="imagefolder", root=str(image_root)), folder_source, message)


def test_a_missing_root_key_is_refused(folder_source: ModelSource) -> None:
    refused(Data(kind="imagefolder"), folder_source, "data.root` is not set")


def test_a_missing_evaluation_folder_is_refused(image_root: Path, folder_source: ModelSource) -> None:
    config = Data(kind="imagefolder", root=str(image_root), also_evaluate={"more": str(image_root / "nowhere")})
    refused(config, folder_source, "nowhere does not exist")


def test_an_evaluation_folder_cannot_be_named_val(image_root: Path, folder_source: ModelSource) -> None:
    config = Data(kind="imagefolder", root=str(image_root), also_evaluate={"val": str(image_root / "val")})
    refused(config, folder_source, "uses the reserved name 'val'")


def test_ten_unreadable_files_are_named_and_the_others_counted(image_root: Path, folder_source: ModelSource) -> None:
    for path in (image_root / "train").rglob("*.*"):
        path.write_bytes(b"")
    error = refused(Data(kind="imagefolder", root=str(image_root)), folder_source, "18 images .* and 8 more")
    assert error.message.count("0 bytes") == 10


def test_folders_of_an_imagenet_model_must_be_imagenet_classes(image_root: Path, folder_source: ModelSource) -> None:
    config = Data(kind="imagefolder", root=str(image_root))
    refused(config, replace(folder_source, classes=1000), "not ImageNet classes: apple, bread, cheese")


def test_a_wordnet_id_outside_imagenet_1k_is_refused(
    tmp_path: Path, folder_source: ModelSource, write_images: Callable[..., None]
) -> None:
    for split in ("train", "val"):
        write_images(tmp_path / split / "n01440764", 1)
        write_images(tmp_path / split / "n00004475", 1)
    config = Data(kind="imagefolder", root=str(tmp_path))
    refused(config, replace(folder_source, classes=1000), "not ImageNet classes: n00004475")


def test_all_truncated_images_are_named_before_anything_runs(image_root: Path, folder_source: ModelSource) -> None:
    for name in ("0.JPEG", "1.png"):
        path = image_root / "val" / "cheese" / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    error = refused(Data(kind="imagefolder", root=str(image_root)), folder_source, "2 images cannot be read")
    assert all(f"cheese/{name} (" in error.message for name in ("0.JPEG", "1.png"))


def test_large_scans_need_a_key(image_root: Path, folder_source: ModelSource) -> None:
    config = Data(kind="imagefolder", root=str(image_root), max_pixels=80 * 45)
    error = refused(config, folder_source, r"9 images .*\(81 x 45 pixels, data.max_pixels is 3,600\)")
    assert "raise data.max_pixels" in error.hint


def test_a_model_with_four_channels_is_refused(image_root: Path, folder_source: ModelSource) -> None:
    config = Data(kind="imagefolder", root=str(image_root))
    refused(config, replace(folder_source, image=(4, 32, 32)), "takes 4 channels")
