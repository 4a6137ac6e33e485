"""Datasets of the package `datasets`: tables of encoded images by position, and no code."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitslim.data import DataModule, load_data
from vitslim.errors import InputError, RecipeError
from vitslim.graph.model_graph import ModelSource
from vitslim.pipeline import check
from vitslim.pipeline.check import check_recipe
from vitslim.recipe import validate
from vitslim.recipe.schema import Data

datasets = pytest.importorskip("datasets")
Load = Callable[..., DataModule]
NAMES = ["dog", "cat", "ape"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep converted tables in the test's folder, and refuse downloads."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 40), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def table(count: int, labeled: bool = True, **columns: list[Any]) -> Any:
    """A dataset of `count` images of the classes 0, 1 and 2, with further columns."""
    labels = {"label": [number % 3 for number in range(count)]} if labeled else {}
    images = [{"bytes": png(number), "path": None} for number in range(count)]
    features = {"image": datasets.Image(), **({"label": datasets.ClassLabel(names=NAMES)} if labels else {})}
    plain = datasets.Dataset.from_dict({"image": images, **labels, **columns})
    return plain.cast(datasets.Features({**plain.features, **features}))


@pytest.fixture
def load(folder_source: ModelSource) -> Load:
    def load_dataset(root: Path | str, outputs: int = 3, **keys: object) -> DataModule:
        config = Data.model_validate({"kind": "huggingface", "root": str(root), **keys})
        return load_data(config, replace(folder_source, classes=outputs), 0)

    return load_dataset


def first_pixels(data: DataModule, count: int) -> list[int]:
    return [int(data.train.pixels(position)[0, 0, 0]) for position in range(count)]


def test_splits_of_save_to_disk_are_read_by_position(tmp_path: Path, load: Load) -> None:
    splits = {"train": table(7), "validation": table(3), "test": table(2)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "set")
    data = load(tmp_path / "set")
    assert (data.train.labels, data.val.labels) == ((0, 1, 2, 0, 1, 2, 0), (0, 1, 2))
    assert data.train.class_names == tuple(NAMES)
    assert data.notes[0] == "train: 7 images; skipped 2 files: 2 split test"
    assert data.notes[-1] == "classes: the class labels of set: dog, cat, ape"
    assert first_pixels(data, 7) == list(range(7))
    assert load(tmp_path / "set", classes=("ape", "cat", "dog")).train.labels[:3] == (2, 1, 0)
    assert load(tmp_path / "set").digest == data.digest


def test_parquet_files_are_read(tmp_path: Path, load: Load) -> None:
    (tmp_path / "set").mkdir()
    table(6, labeled=False, label_name=["a", "b"] * 3).to_parquet(tmp_path / "set" / "train-00000.parquet")
    data = load(tmp_path / "set", outputs=2, label_field="label_name", val_fraction=0.34)
    assert sorted(data.train.labels + data.val.labels) == [0, 0, 0, 1, 1, 1]
    assert first_pixels(data, 1)[0] in range(6)


@pytest.mark.parametrize(
    ("columns", "keys", "problem"),
    [
        ({"label": [0, None, 2]}, {}, "'label' of .*set:train has 1 broken row: row 1 has no label"),
        ({"label": [0, 1, 5]}, {}, r"class indices above 2: 2"),
        ({"label": [0, 1, 2]}, {"label_field": "fine"}, "has no column 'fine', got image, label"),
        ({"label": [0, 1, 2], "labels": [[0], [1], [2]]}, {}, "has two columns of labels: label, labels"),
        ({"label": [0, 1, 2]}, {"max_pixels": 1000}, r"6 images cannot be read: .*set:train\[0\] \(40 x 40 pixels"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(
    tmp_path: Path, load: Load, columns: dict[str, list[Any]], keys: dict[str, Any], problem: str
) -> None:
    split = table(3, labeled=False, **columns)
    datasets.DatasetDict({"train": split, "validation": split}).save_to_disk(tmp_path / "set")
    with pytest.raises(InputError, match=problem) as error:
        load(tmp_path / "set", **keys)
    assert error.value.exit_code == 5 and error.value.hint and "\n" not in error.value.message


def test_models_of_other_classes_are_refused(tmp_path: Path, load: Load) -> None:
    datasets.DatasetDict({"train": table(3), "validation": table(3)}).save_to_disk(tmp_path / "set")
    with pytest.raises(InputError, match="has 3 classes, the model has 1000 classes"):
        load(tmp_path / "set", outputs=1000)


def test_other_formats_and_scripts_are_refused(tmp_path: Path, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # no attempts to connect, which take 20 s
    for name, content in (("table.csv", "a,b\n"), ("script.py", "raise SystemExit")):
        folder = tmp_path / Path(name).stem
        folder.mkdir()
        (folder / name).write_text(content)
        with pytest.raises(InputError, match="cannot be read"):
            load(folder)
    with pytest.raises(InputError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(InputError, match="hub:nobody/nothing@main cannot be read"):
        load("hub:nobody/nothing@main")


def test_files_outside_of_the_folder_are_refused(tmp_path: Path, load: Load) -> None:
    table(3).save_to_disk(tmp_path / "other")
    table(3).save_to_disk(tmp_path / "set")
    state = json.loads((tmp_path / "set" / "state.json").read_text())
    state["_data_files"] = [{"filename": f"../other/{one['filename']}"} for one in state["_data_files"]]
    (tmp_path / "set" / "state.json").write_text(json.dumps(state))
    with pytest.raises(InputError, match="names files outside of it"):
        load(tmp_path / "set", val_fraction=0.5)


def test_rows_without_bytes_are_refused(tmp_path: Path, load: Load) -> None:
    (tmp_path / "1.png").write_bytes(png(1))
    rows = [{"bytes": None, "path": str(tmp_path / "1.png")}] * 4
    plain = datasets.Dataset.from_dict({"image": rows, "label": [0, 1, 2, 0]})
    plain.save_to_disk(tmp_path / "set")
    with pytest.raises(InputError, match="the row holds no bytes"):
        load(tmp_path / "set", val_fraction=0.5)


def test_the_package_is_asked_for_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check, "find_spec", lambda _: None)
    recipe = validate({
        "name": "a", "model": {"timm": "test_vit"}, "stages": ["export"],
        "data": {"kind": "huggingface", "root": "hub:org/name"},
    })  # fmt: skip
    with pytest.raises(RecipeError) as error:
        check_recipe(recipe)
    (problem,) = error.value.problems
    assert problem.where == "data.kind" and "pip install 'vitslim[datasets]'" in problem.hint


@pytest.mark.parametrize(
    ("data", "where"),
    [
        ({"kind": "imagefolder", "root": "a", "label_field": "cls"}, "data.label_field"),
        ({"kind": "webdataset", "root": "hub:org/name"}, "data.root"),
        ({"kind": "imagefolder", "root": "a", "also_evaluate": {"b": "hub:org/name"}}, "data.also_evaluate.b"),
        ({"kind": "huggingface", "root": "hub:csv"}, "data.root"),
        ({"kind": "huggingface", "root": "hub:../name@main"}, "data.root"),
        ({"kind": "webdataset"}, "data.root"),
    ],
)
def test_keys_of_other_kinds_are_refused(data: dict[str, Any], where: str) -> None:
    with pytest.raises(RecipeError) as error:
        check_recipe(validate({"name": "a", "model": {"timm": "test_vit"}, "stages": ["export"], "data": data}))
    assert [problem.where for problem in error.value.problems] == [where]
