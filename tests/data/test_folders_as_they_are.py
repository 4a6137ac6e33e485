"""Image folders as people have them: files of operating systems, any suffix, any name, no split, no classes."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vitslim.data import DataModule, load_data
from vitslim.data.files import check, file_states
from vitslim.data.files.check import check_images
from vitslim.data.files.image_list import ImageList
from vitslim.data.files.sets import list_sets
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelSource
from vitslim.progress import Silent
from vitslim.recipe.schema import PIXELS_MAX, Data

FORMATS = {".jfif": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", "": "PNG"}


def config(root: Path, **keys: object) -> Data:
    return Data.model_validate({"kind": "imagefolder", "root": str(root), **keys})


def load(root: Path, source: ModelSource, seed: int = 0, **keys: object) -> DataModule:
    return load_data(config(root, **keys), source, seed)


def test_system_files_are_skipped_and_counted(image_root: Path, folder_source: ModelSource) -> None:
    before = load(image_root, folder_source)
    train = image_root / "train"
    (train / "__MACOSX" / "apple").mkdir(parents=True)
    for name in ("__MACOSX/apple/._0.JPEG", ".DS_Store", "apple/Thumbs.db", "apple/._1.png", "apple/a.txt", "list.txt"):
        (train / name).write_bytes(b"junk")
    (train / "bread" / "README").write_text("without a suffix, and no image")
    Image.new("RGB", (9, 9)).save(train / "stray.png")
    after = load(image_root, folder_source)
    skipped = "2 .txt, 1 .DS_Store, 1 Thumbs.db, 1 __MACOSX, 1 hidden, 1 outside of class folders, 1 without a suffix"
    assert after.notes[0] == f"train: 18 images; skipped 8 files: {skipped}"
    assert after.digest == before.digest


@pytest.mark.parametrize("suffix", FORMATS)
def test_the_content_decides_on_the_format(image_root: Path, folder_source: ModelSource, suffix: str) -> None:
    Image.new("RGB", (40, 40), (10, 200, 30)).save(image_root / "val" / "apple" / f"image{suffix}", FORMATS[suffix])
    (image_root / "val" / "bread" / "0.JPEG").rename(image_root / "val" / "bread" / "named-wrong.png")
    val = load(image_root, folder_source).val
    assert len(val) == 10 and len(list(val.batches(10))) == 1


def test_formats_that_run_programs_are_not_read(image_root: Path, folder_source: ModelSource) -> None:
    (image_root / "val" / "apple" / "0.JPEG").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(InputError, match="unknown image format"):
        load(image_root, folder_source)


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_other_names_of_val_are_accepted(image_root: Path, folder_source: ModelSource, name: str) -> None:
    (image_root / "val").rename(image_root / name)
    assert len(load(image_root, folder_source).val) == 9
    shutil.copytree(image_root / name, image_root / "val")
    with pytest.raises(InputError, match=f"has val/ and {name}/, which are names of one split"):
        load(image_root, folder_source)


def test_a_fraction_of_each_class_is_the_validation_set(image_root: Path, folder_source: ModelSource) -> None:
    shutil.rmtree(image_root / "val")
    data, again, other = (load(image_root, folder_source, seed, val_fraction=0.25) for seed in (0, 0, 1))
    assert (Counter(data.val.labels), Counter(data.train.labels)) == ({0: 1, 1: 2, 2: 2}, {0: 3, 1: 4, 2: 6})
    assert set(data.val.source.source.images.files).isdisjoint(data.train.source.source.images.files)
    assert data.val.digest == again.val.digest != other.val.digest
    (note,) = [note for note in data.notes if note.startswith("val: 5 of 18 images")]
    assert note.endswith("drawn from each class with seed 0 (data.val_fraction: 0.25)")


def test_class_folders_without_splits_need_a_fraction(image_root: Path, folder_source: ModelSource) -> None:
    with pytest.raises(InputError, match="no validation set") as error:
        load(image_root / "train", folder_source)
    assert "data.val_fraction" in error.value.hint
    assert len(load(image_root / "train", folder_source, val_fraction=0.5).val) == 9
    with pytest.raises(InputError, match=r"`data\.val_fraction` is set, and .*val has a validation set"):
        load(image_root, folder_source, val_fraction=0.5)


def test_a_folder_without_classes_has_images_without_labels(image_root: Path, folder_source: ModelSource) -> None:
    for split in ("train", "val"):
        shutil.move(image_root / split / "apple", image_root / "plain" / split)
    data = load(image_root / "plain", folder_source)
    assert (len(data.train), len(data.val)) == (4, 3)
    assert not (data.train.is_labeled or data.val.is_labeled)
    assert next(iter(data.val.batches(3)))[1].tolist() == [-1, -1, -1]
    assert data.notes[:2] == ("train: 4 images without labels", "val: 3 images without labels")
    assert len(data.calibration.balanced(2)) == 2


def test_labeled_validation_images_may_follow_training_images_without_labels(
    image_root: Path, folder_source: ModelSource, write_images: Callable[..., None]
) -> None:
    shutil.rmtree(image_root / "train")
    write_images(image_root / "train", 5)
    data = load(image_root, folder_source)
    assert (data.train.is_labeled, data.val.labels) == (False, (0, 0, 0, 1, 1, 1, 2, 2, 2))


def test_names_that_are_not_utf_8_are_read_and_shown(image_root: Path, folder_source: ModelSource) -> None:
    latin = os.fsdecode(b"caf\xe9")
    for split in ("train", "val"):
        (image_root / split / "apple").rename(image_root / split / latin)
        (image_root / split / latin / "0.JPEG").rename(image_root / split / latin / f"{latin}.jpg")
    data = load(image_root, folder_source)
    assert data.val.class_names == ("bread", "caf\\xe9", "cheese")
    assert data.notes[-1] == "classes: the order of both timm and torchvision: bread, caf\\xe9, cheese"
    assert len(list(data.val.batches(9))) == 1
    (image_root / "val" / latin / f"{latin}.jpg").write_bytes(b"")
    with pytest.raises(InputError, match=r"caf\\xe9/caf\\xe9\.jpg \(0 bytes\)") as error:
        load(image_root, folder_source)
    assert error.value.message.isascii()


def test_a_link_to_nothing_is_unreadable(image_root: Path, folder_source: ModelSource) -> None:
    (image_root / "val" / "apple" / "0.JPEG").unlink()
    (image_root / "val" / "apple" / "0.JPEG").symlink_to("nowhere.jpg")
    with pytest.raises(InputError, match=r"apple/0\.JPEG \(No such file or directory\)"):
        load(image_root, folder_source)


class TestOnePass:
    """Every image is decoded once, and its result is kept while no file changes."""

    @pytest.fixture(autouse=True)
    def files_of_earlier_days(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Keep results of files that were written just before."""
        monkeypatch.setattr(file_states, "TICK_S", 0.0)

    @pytest.fixture
    def opened(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
        """The files that are opened, and whether they are decoded."""
        found: list[tuple[str, bool]] = []
        damage = check.damage

        def record(path: Path, pixels_max: int, decode: bool) -> str | None:
            found.append((path.name, decode))
            return damage(path, pixels_max, decode)

        monkeypatch.setattr(check, "damage", record)
        return found

    def test_a_second_run_opens_no_file(
        self, image_root: Path, tmp_path: Path, opened: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (image_root / "train" / "apple" / "LICENSE").write_text("no image")
        listed = list_sets(config(image_root), None)
        first = check_images(listed, PIXELS_MAX, Silent(), tmp_path / "cache")
        assert len(opened) == 28 and all(decode for _, decode in opened)
        with monkeypatch.context() as patch:
            patch.setattr(ImageList, "file", lambda *_: pytest.fail("an image was read"))
            second = check_images(listed, PIXELS_MAX, Silent(), tmp_path / "cache")
        assert first == second and first["train"].skipped == {"without a suffix": 1}
        check_images(listed, PIXELS_MAX - 1, Silent(), tmp_path / "cache")
        assert len(opened) == 56

    def test_a_changed_pixel_is_another_digest(
        self, image_root: Path, tmp_path: Path, opened: list[tuple[str, bool]]
    ) -> None:
        listed = list_sets(config(image_root), None)
        before = check_images(listed, PIXELS_MAX, Silent(), tmp_path / "cache")
        path = image_root / "val" / "bread" / "1.png"
        stat = path.stat()
        Image.new("RGB", (40, 40)).save(path, compress_level=0)
        data = path.read_bytes()
        path.write_bytes(data[:-1] + b"\x83")
        os.utime(path, (stat.st_atime, stat.st_mtime))
        after = check_images(listed, PIXELS_MAX, Silent(), tmp_path / "cache")
        assert before["val"].digest != after["val"].digest and before["train"].digest == after["train"].digest
        assert len(opened) == 54

    @pytest.mark.parametrize("place", [100, -1], ids=["beginning", "end"])
    def test_the_digest_covers_both_ends_of_a_large_file(self, image_root: Path, tmp_path: Path, place: int) -> None:
        path = image_root / "val" / "bread" / "large.bmp"
        Image.new("RGB", (300, 300)).save(path)
        listed = list_sets(config(image_root), None)
        before = check_images(listed, PIXELS_MAX, Silent(), tmp_path / "cache")
        data = bytearray(path.read_bytes())
        assert len(data) > 4 * check.END_BYTES
        data[place] ^= 1
        path.write_bytes(data)
        assert check_images(listed, PIXELS_MAX, Silent(), tmp_path / "cache")["val"].digest != before["val"].digest

    def test_files_that_were_just_written_are_read_again(
        self, image_root: Path, tmp_path: Path, opened: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(file_states, "TICK_S", 3600.0)
        for _ in range(2):
            check_images(list_sets(config(image_root), None), PIXELS_MAX, Silent(), tmp_path / "cache")
        assert len(opened) == 54

    def test_large_sets_are_decoded_on_first_use(
        self, image_root: Path, tmp_path: Path, opened: list[tuple[str, bool]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(check, "DECODED_MAX", 26)
        check_images(list_sets(config(image_root), None), PIXELS_MAX, Silent(), tmp_path / "cache")
        assert len(opened) == 27 and not any(decode for _, decode in opened)
