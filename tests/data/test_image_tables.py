"""CSV and JSON-lines tables are data sets; broken rows are refused with their lines."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from vitslim.data import DataModule, load_data
from vitslim.data.files.table import read_table
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelSource
from vitslim.recipe.schema import Data

Load = Callable[..., DataModule]
HEADER = "path,label,split\n"
GOOD = "apple/0.JPEG,apple,train\nbread/1.png,bread,train\ncheese/0.JPEG,cheese,valid\nbread/0.JPEG,bread,test\n"


@pytest.fixture
def load(image_root: Path, folder_source: ModelSource) -> Load:
    """Write a table beside the class folders of `train`, and load it."""

    def write_and_load(text: str, name: str = "images.csv", outputs: int = 3, **keys: object) -> DataModule:
        path = image_root / "train" / name
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        config = Data.model_validate({"kind": "imagefolder", "root": str(path), **keys})
        return load_data(config, replace(folder_source, classes=outputs), 0)

    return write_and_load


def test_labels_are_class_names_in_the_order_that_loaders_agree_on(load: Load) -> None:
    rows = GOOD.replace("bread/1.png", "./bread/../bread/1.png").replace("valid", "train")
    data = load(HEADER + rows + "cheese/1.png,cheese,validation\n")
    assert (data.train.labels, data.val.labels) == ((0, 1, 2), (2,))
    assert data.train.class_names == ("apple", "bread", "cheese")
    assert "train: 3 images; skipped 1 file: 1 split test" in data.notes
    assert data.train.source.source.images.files == ("apple/0.JPEG", "bread/1.png", "cheese/0.JPEG")


def test_digits_are_indices_unless_the_classes_are_named_so(load: Load) -> None:
    rows = "path,label,split\napple/0.JPEG,2,train\nbread/1.png,0,train\ncheese/0.JPEG,2,val\n"
    found = load(rows, outputs=5)
    assert (found.train.labels, found.val.labels) == ((2, 0), (2,))
    assert any("indices of images.csv, counted from 0" in note for note in found.notes)
    assert load(rows, outputs=3, classes=("2", "1", "0")).train.labels == (0, 2)


def test_json_lines_hold_the_same_keys(load: Load) -> None:
    rows = [{"path": "apple/0.JPEG", "label": 1}, {"path": "bread/0.JPEG", "label": 0, "split": "val"}]
    data = load("\n".join(map(json.dumps, rows)), "images.jsonl", outputs=2)
    assert (data.train.labels, data.val.labels) == ((1,), (0,))


def test_images_may_have_several_labels(load: Load) -> None:
    rows = (
        "apple/0.JPEG,bread; apple,train",
        "bread/0.JPEG,,train",
        "cheese/0.JPEG,cheese,val",
        "bread/1.png,cheese,train",
    )
    data = load("path,labels,split\n" + "\n".join(rows))
    assert data.train.labels == ((1, 0), (), (2,)) and data.train.has_several_labels
    _, labels = next(iter(data.train.batches(3)))
    assert labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert len(data.train.balanced(2)) == 2


def test_a_table_without_labels_or_splits_needs_a_fraction(load: Load) -> None:
    rows = "path\n" + "".join(f"cheese/{number}.{'png' if number % 2 else 'JPEG'}\n" for number in range(8))
    data = load(rows, val_fraction=0.25)
    assert (len(data.train), len(data.val), data.train.is_labeled) == (6, 2, False)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("apple/0.JPEG,apple\n", "line 2 has 2 fields, the header has 3"),
        (",apple,train\n", "line 2 has no path"),
        ("apple/0.JPEG,,train\n", "line 2 has no label"),
        ("apple/0.JPEG,apple,dev\n", "line 2 has an unknown split; allowed: train, val, test"),
        ("apple/9.png,apple,train\n", "line 2 names a file that does not exist"),
        ("../val/apple/0.JPEG,apple,train\n", "line 2 has a path outside of the folder of the table"),
        ("apple/out.png,apple,train\n", "line 2 has a path outside of the folder of the table"),
        ("/etc/passwd,apple,train\n", "line 2 has a path outside of the folder of the table"),
        ("apple/0.JPEG,apple,train\napple/0.JPEG,bread,val\n", "line 3 lists the image of line 2 again"),
        ('apple/0.JPEG,"apple,train\n', "line 2 is not CSV"),
    ],
)
def test_broken_rows_are_refused_with_their_lines(load: Load, image_root: Path, rows: str, problem: str) -> None:
    (image_root / "train" / "apple" / "out.png").symlink_to(image_root / "val" / "apple" / "0.JPEG")
    with pytest.raises(InputError, match="broken row") as error:
        load(HEADER + rows)
    assert problem in error.value.message and error.value.exit_code == 5 and error.value.hint


def test_all_broken_rows_are_counted(load: Load) -> None:
    with pytest.raises(InputError, match=r"has 14 broken rows: line 2 .*; line 11 .*; and 4 more"):
        load(HEADER + "absent.png,apple,train\n" * 14)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{", "line 2 is not JSON"),
        ("[1]", "line 2 is not a JSON object"),
        ('{"path": "bread/0.JPEG", "label": -1}', "a label that is neither a name nor an index"),
        ('{"path": "bread/0.JPEG", "label": true}', "a label that is neither a name nor an index"),
        ('{"path": "bread/0.JPEG"}', "has other columns than line 1"),
        ('{"path": "bread/0.JPEG", "label": "\\ud800"}', "a label that is no text"),
        ('{"path": "\\ud800", "label": "a"}', "a path that is not valid"),
        ('{"path": "bread/0.JPEG", "labels": {"a": 1}}', "has `labels` that are neither text nor a list"),
    ],
)
def test_broken_json_lines_are_refused(load: Load, row: str, problem: str) -> None:
    with pytest.raises(InputError, match="1 broken row") as error:
        load('{"path": "apple/0.JPEG", "label": "apple"}\n' + row, "images.jsonl")
    assert problem in error.value.message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file;label\n", "must name the columns, among them path; got 'file;label'"),
        ("", "must name the columns"),
        ("path,label\n", "lists no images"),
        ("path,label,split\nbread/0.JPEG,bread,val\n", "has no training images"),
        ("path,label\nbread/0.JPEG,bread\n", "has no validation set"),
        ("path,label,split\nbread/0.JPEG,0,train\napple/0.JPEG,3,val\n", "has class indices above 2: line 3"),
        ("path,label,split\nbread/0.JPEG,a,train\napple/0.JPEG,b,val\n", "1 class folders, the model has 3 classes"),
    ],
)
def test_tables_that_are_no_data_set_are_refused(load: Load, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load(text)
    assert error.value.hint


def test_a_listed_file_must_be_an_image(load: Load, image_root: Path) -> None:
    (image_root / "train" / "words").write_text("no image")
    with pytest.raises(InputError, match=r"1 image cannot be read: .*words \(unknown image format\)"):
        load("path,label,split\nwords,0,train\nbread/0.JPEG,1,val\n")


def test_labels_that_are_not_utf_8_are_names(load: Load) -> None:
    rows = "path,label,split\napple/0.JPEG,caf\udce9,train\nbread/0.JPEG,caf\udce9,val\n"
    assert load(rows, outputs=1).train.class_names == ("caf\\xe9",)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match="neither a folder nor a table") as error:
        read_table(tmp_path / "images.xlsx", None)
    assert ".csv, .jsonl" in error.value.hint


def test_a_feature_extractor_takes_any_indices(load: Load) -> None:
    rows = "path,label,split\napple/0.JPEG,7,train\nbread/1.png,0,train\ncheese/0.JPEG,7,val\n"
    found = load(rows, outputs=0)
    assert (found.train.labels, found.val.labels, len(found.val.class_names)) == ((7, 0), (7,), 8)
