"""WebDataset shards: images are read by position, labels follow the rules of tables, bad shards are refused."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from vitslim.data import DataModule, load_data
from vitslim.data.files.sets import list_sets
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelSource
from vitslim.progress import Silent
from vitslim.recipe.schema import Data

Members = Iterable[tuple[str, bytes]]
Load = Callable[..., DataModule]


def png(number: int, side: int = 40) -> bytes:
    """An image whose color is its number."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples(numbers: Iterable[int]) -> Members:
    """Samples of the classes 0, 1 and 2."""
    for number in numbers:
        yield f"{number:03d}.png", png(number)
        yield f"{number:03d}.cls", str(number % 3).encode()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three shards of 21 training images and one of 6 validation images."""
    for shard in range(3):
        write_tar(tmp_path / f"set-train-{shard:06d}.tar", samples(range(7 * shard, 7 * shard + 7)))
    write_tar(tmp_path / "set-val-000000.tar", samples(range(100, 106)))
    return tmp_path


@pytest.fixture
def load(folder_source: ModelSource) -> Load:
    def load_shards(root: Path, outputs: int = 3, **keys: object) -> DataModule:
        config = Data.model_validate({"kind": "webdataset", "root": str(root), **keys})
        return load_data(config, replace(folder_source, classes=outputs), 0)

    return load_shards


def numbers(images: torch.Tensor) -> list[int]:
    """Return the numbers of images by their color."""
    unit = images[:, 0].mean(dim=(1, 2)) * 0.229 + 0.485
    return [round(255 * value) for value in unit.tolist()]


def test_two_ranks_read_each_sample_once_in_each_of_three_epochs(root: Path, load: Load) -> None:
    train = load(root).train
    assert train.source.workers > 0
    orders = []
    for epoch in range(3):
        batches = train.batches(6, shuffle_seed=epoch)
        of_ranks = [
            replace(batches, positions=tuple(positions[rank::2] for positions in batches.positions)) for rank in (0, 1)
        ]
        read = [number for rank in of_ranks for images, _ in rank for number in numbers(images)]
        assert Counter(read) == dict.fromkeys(range(21), 1)
        orders.append(read)
        for images, labels in of_ranks[0]:
            assert [number % 3 for number in numbers(images)] == labels.tolist()
    assert orders[0] != orders[1] != orders[2]


def test_augmentation_follows_the_sample_and_not_the_rank(root: Path, load: Load) -> None:
    train = load(root).train.augmented(5)
    whole = train.batches(6, shuffle_seed=1)
    own = replace(whole, positions=tuple(positions[1::2] for positions in whole.positions))
    for (images, _), (part, _) in zip(whole, own, strict=True):
        assert torch.equal(images[1::2], part)


def test_shards_are_indexed_once(root: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitslim.data.files.file_states.TICK_S", 0.0)
    first = load(root)
    monkeypatch.setattr("vitslim.data.files.containers.shards.index_tar", lambda *_: pytest.fail("indexed again"))
    second = load(root)
    assert first.digest == second.digest and numbers(second.val.stacked()) == list(range(100, 106))
    monkeypatch.chdir(root.parent)
    load(root.name)
    monkeypatch.setattr("vitslim.data.files.check.damage", lambda *_: pytest.fail("checked again"))
    assert load(root.name).digest == first.digest
    monkeypatch.undo()
    write_tar(root / "set-val-000000.tar", samples(range(110, 116)))
    assert load(root).val.digest != first.val.digest


def test_the_reader_of_webdataset_finds_the_same_samples(tmp_path: Path, load: Load) -> None:
    webdataset = pytest.importorskip("webdataset")
    for split, start in (("train", 0), ("val", 50)):
        (tmp_path / split).mkdir()
        with webdataset.ShardWriter(str(tmp_path / split / "%04d.tar"), maxcount=4, verbose=0) as writer:
            for number in range(start, start + 10):
                writer.write({
                    "__key__": f"part.a/{number:03d}", "png": png(number), "cls": number % 3,
                    "json": {"caption": "a color"}, "txt": "a color",
                })  # fmt: skip
    data = load(tmp_path)
    shards = sorted(map(str, (tmp_path / "train").iterdir()))
    expected = list(webdataset.WebDataset(shards, shardshuffle=False).decode("rgb8").to_tuple("png", "cls"))
    assert numbers(data.train.stacked()) == [int(image[0, 0, 0]) for image, _ in expected]
    assert list(data.train.labels) == [label for _, label in expected]
    assert data.notes[0] == "train: 10 images; skipped 10 files: 10 .txt"


def test_labels_of_json_members_are_names(tmp_path: Path, load: Load) -> None:
    labels = ({"label": "dog", "id": 7}, {"label": "cat", "id": 8})
    for split in ("train", "val"):
        members = [(f"{number}.{suffix}", content) for number, label in enumerate(labels)
                   for suffix, content in (("json", json.dumps(label).encode()), ("png", png(number)))]  # fmt: skip
        write_tar(tmp_path / f"{split}.tar", members)
    found = load(tmp_path, outputs=2)
    assert (found.train.labels, found.train.class_names) == ((1, 0), ("cat", "dog"))
    assert load(tmp_path, outputs=9, label_field="id").train.labels == (7, 8)
    assert load(tmp_path, outputs=2, classes=("dog", "cat")).train.labels == (0, 1)


def test_lists_of_labels_and_no_labels(tmp_path: Path, load: Load) -> None:
    several = write_tar(tmp_path / "a.tar", [("0.png", png(0)), ("0.json", b'{"labels": [2, 0]}')])
    listed = list_sets(Data(kind="webdataset", root=str(several), val_fraction=0.5), None)["train"]
    assert (listed.kind, listed.labels) == ("several", ((2, 0),))
    plain = write_tar(tmp_path / "b.tar", [(f"{number}.png", png(number)) for number in range(4)])
    found = load(plain, val_fraction=0.25, also_evaluate={"more": str(plain)})
    assert (len(found.train), len(found.val), found.train.is_labeled) == (3, 1, False)
    assert numbers(found.extra["more"].stacked()) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([("1.png", png(1)), ("2.png", png(2)), ("2.cls", b"0")], r"'2' has one label, and '1\.png' has no label"),
        ([("1.png", png(1)), ("1.cls", b"0"), ("1.json", b'{"label": 1}')], "'1' has two labels, in .cls and in .json"),
        ([("1.png", png(1)), ("1.json", b'{"label": 1, "labels": [1]}')], "'1' has `label` and `labels`"),
        ([("1.png", png(1)), ("1.cls", b"")], "'1' has no label"),
        ([("1.png", png(1)), ("1.cls", b"0"), ("1.cls", b"1")], r"'1' has two members \.cls"),
        ([("1.png", png(1)), ("1.jpg", png(1))], "'1' has 2 images"),
        ([("1.png", png(1)), ("2.png", png(1)), ("1.cls", b"0")], "'1' stands in two places"),
        ([("1.png", png(1)), ("1.json", b"{")], r"'1' has a member \.json that is not JSON"),
        ([("1.png", png(1)), ("1.cls", b"7" * (1 << 20) + b"7")], "'1' has a label of 1,048,577 bytes"),
        (
            [("1.png", png(1)), ("1.cls", b"9"), ("2.png", png(2)), ("2.cls", b"9")],
            r"has class indices above 2: x\.tar/[12]\.png",
        ),
        (
            [("1.png", png(1)), ("1.cls", b"a"), ("2.png", png(2)), ("2.cls", b"a")],
            "1 class folders, the model has 3 classes",
        ),
        ([("1.png", b"no image"), ("1.cls", b"0")], r"x\.tar/1\.png \(unknown image format\)"),
        ([("1.png", png(1)[:60]), ("1.cls", b"0")], r"1 image cannot be read: .*x\.tar/1\.png \("),
        ([("1.png", b""), ("1.cls", b"0")], r"x\.tar/1\.png \(0 bytes\)"),
        ([("README.txt", b"x")], "has no images in x.tar"),
    ],
)
def test_samples_that_cannot_be_used_are_refused(tmp_path: Path, load: Load, members: Members, problem: str) -> None:
    path = write_tar(tmp_path / "x.tar", members)
    with pytest.raises(InputError, match=problem) as error:
        load(path, val_fraction=0.5)
    assert error.value.exit_code == 5 and error.value.hint and "\n" not in error.value.message


def test_large_images_are_refused(tmp_path: Path, load: Load) -> None:
    path = write_tar(tmp_path / "x.tar", [("1.png", png(1, side=100)), ("2.png", png(1))])
    with pytest.raises(InputError, match=r"x\.tar/1\.png \(100 x 100 pixels, data.max_pixels is 9,999\)"):
        load(path, val_fraction=0.5, max_pixels=9_999)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


END = bytes(1024)
WHOLE = header("1.png", len(png(1))) + png(1).ljust(512, b"\0")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is not a tar file, or is damaged: empty file"),
        (b"PK" * 400, "is not a tar file, or is damaged"),
        (WHOLE[:-400], "is not a tar file, or is damaged: unexpected end of data"),
        (WHOLE, "is truncated: the end of the archive is missing"),
        (WHOLE + b"x" * 512 + END, "is damaged at byte 1,024"),
        (header("x", 1 << 40, tarfile.GNUTYPE_LONGNAME) + END, "a header is too large"),
        (header("x", 1 << 40, tarfile.XHDTYPE) + END, "a header is too large"),
        (header("1.png", 0, tarfile.SYMTYPE) + END, r"'1' has a member \.png that is not a plain file"),
        (header("1.png", 1 << 40) + END, "unexpected end of data"),
    ],
)
def test_damaged_shards_are_refused(tmp_path: Path, load: Load, content: bytes, problem: str) -> None:
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(InputError, match=problem) as error:
        load(tmp_path, val_fraction=0.5)
    assert error.value.exit_code == 5 and error.value.hint


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ((), r"has no shards \(\.tar\)"),
        (("a.tar.gz",), r"compressed shards, whose images cannot be found: a\.tar\.gz"),
        (("a-train.tar", "b.tar"), r"names do not say the split, or two: b\.tar"),
        (("a-train-val.tar", "b-train.tar"), r"names do not say the split, or two: a-train-val\.tar"),
        (("a-val.tar",), "has no training images"),
        (("a-train.tar",), "has no validation set"),
    ],
)
def test_folders_of_unclear_splits_are_refused(
    tmp_path: Path, load: Load, names: tuple[str, ...], problem: str
) -> None:
    (tmp_path / "set").mkdir()
    for name in names:
        write_tar(tmp_path / "set" / name, samples([0, 1, 2]))
    with pytest.raises(InputError, match=problem):
        load(tmp_path / "set")


def test_members_are_read_where_they_are(tmp_path: Path) -> None:
    """No name of a member is a path on disk."""
    names = ("../../outside", "/etc/inside", "a" * 300, "caf\udce9")
    path = write_tar(tmp_path / "x.tar", [(f"{name}.png", png(n)) for n, name in enumerate(names)])
    listed = list_sets(Data(kind="webdataset", root=str(path), val_fraction=0.5), None, Silent())["train"]
    contents = [listed.file(position).open("rb").read() for position in range(4)]
    assert contents == [png(number) for number in range(4)]
    assert [one for one in tmp_path.rglob("*") if one.is_file()] == [path]
