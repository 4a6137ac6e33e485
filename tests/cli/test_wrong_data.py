"""Image folders, tables, labels and teachers that cannot be used: message, hint and exit code."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vitslim.graph.model_graph import ModelGraph
from vitslim.pipeline import dense_model

CLASSES = ("cat", "dog")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """train/ and val/ of two classes."""
    for split in ("train", "val"):
        for position, name in enumerate(CLASSES):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (40, 40), (80 * position + 40, 20 * number, 90)).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def traced(tiny_graph: ModelGraph, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take a model that is traced already; it has ten classes."""
    monkeypatch.setattr(dense_model, "trace_model", lambda *_: tiny_graph)


@pytest.fixture
def recipe(tmp_path: Path, tiny_kwargs: dict[str, Any]) -> Path:
    """A recipe that needs labels."""
    document = {
        "name": "test", "model": {"timm": "vit_tiny_patch16_224", "kwargs": tiny_kwargs},
        "data": {"kind": "imagefolder", "calibration": 4}, "report": {"seconds": 0.1},
        "stages": [{"distill": {"teacher": "dense", "train": {"epochs": 1}}}, "export"],
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def no_val(root: Path) -> Path:
    shutil.rmtree(root / "val")
    return root


def two_names_of_val(root: Path) -> Path:
    shutil.copytree(root / "val", root / "valid")
    return root


def unlabeled(root: Path) -> Path:
    for split in ("train", "val"):
        for path in sorted((root / split).rglob("*.png")):
            path.rename(root / split / f"{path.parent.name}{path.name}")
        for name in CLASSES:
            (root / split / name).rmdir()
    return root


def broken_table(root: Path) -> Path:
    path = root / "images.csv"
    path.write_text("path,label,split\ntrain/cat/0.png,cat,train\n../recipe.yaml,dog,train\n,dog,val\n")
    return path


def latin_table(root: Path) -> Path:
    path = root / "images.csv"
    path.write_bytes(b"path,label,split\ncaf\xe9.png,cat,train\ntrain/dog/0.png,dog,val\n")
    return path


AT_PLAN = [
    (no_val, 5, ["has no validation set val/", "set data.val_fraction"], ()),
    (two_names_of_val, 5, ["has val/ and valid/, which are names of one split", "remove one of them"], ()),
    (lambda root: root, 5, ["`data.val_fraction` is set", "remove data.val_fraction"], ("data.val_fraction=0.5",)),
    (lambda root: root / "nowhere", 5, ["nowhere does not exist", "set data.root"], ()),
    (lambda root: root / "train" / "cat" / "0.png", 5, ["neither a folder nor a table", ".csv, .jsonl"], ()),
    (unlabeled, 2, ["stages.0.distill", "have no labels", "`labels: teacher`"], ()),
    (unlabeled, 2, ["gates.top1_min", "its metric is not known"],
     ("gates.top1_min=5", "stages.0.distill.labels=teacher")),
    (broken_table, 5, ["2 broken rows", "line 3 has a path outside", "line 4 has no path", "path,label[,split]"], ()),
    (latin_table, 5, ["1 broken row: line 2 names a file that does not exist"], ()),
    (lambda root: root, 2, ["stages.0.distill.teacher", "test_vit has 7 classes, the model has 10"],
     ("stages.0.distill.teacher={timm: test_vit, kwargs: {num_classes: 7}}",)),
    (lambda root: root, 2, ["model.preprocessing.crop_mode", "allowed: border, center, squash"],
     ("model.preprocessing.crop_mode=fit",)),
    (lambda root: root, 2, ["model.preprocessing.input_size", "expected [channels, height, width] as three integers"],
     ("model.preprocessing.input_size=[3, 32]",)),
]  # fmt: skip


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(("change", "code", "words", "values"), AT_PLAN)
def test_plan_refuses_it(
    vitslim: Callable[..., Any], recipe: Path, images: Path, change: Callable[[Path], Path], code: int,
    words: list[str], values: tuple[str, ...],
) -> None:  # fmt: skip
    outcome = vitslim("plan", recipe, "--data", change(images), *values)
    assert outcome.code == code, outcome.err
    assert ("hint:" in outcome.err or "expected" in outcome.err) and "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


@pytest.mark.usefixtures("traced")
def test_plan_accepts_the_same_data(vitslim: Callable[..., Any], recipe: Path, images: Path) -> None:
    assert vitslim("plan", recipe, "--data", images).code == 0


def test_plan_refuses_a_mean_of_other_channels(vitslim: Callable[..., Any], recipe: Path, images: Path) -> None:
    outcome = vitslim("plan", recipe, "--data", images, "model.preprocessing.mean=[0.1, 0.2]")
    assert outcome.code == 2
    assert "model.preprocessing.mean has 2 values" in outcome.err and "to 3 values" in outcome.err


def zero_bytes(root: Path) -> None:
    for name in CLASSES:
        (root / "val" / name / "1.png").write_bytes(b"")


def latin_name(root: Path) -> None:
    (root / "val" / "cat" / os.fsdecode(b"caf\xe9.png")).write_bytes(b"\x89PNG\r\n\x1a\n broken")


def nothing(root: Path) -> None:
    pass


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize(
    ("damage", "words", "values"),
    [
        (zero_bytes, ["2 images cannot be read", "cat/1.png (0 bytes)", "dog/1.png (0 bytes)"], ()),
        (latin_name, ["1 image cannot be read", "caf\\xe9.png"], ()),
        (nothing, ["12 images cannot be read", "data.max_pixels is 1,000", "raise data.max_pixels"],
         ("data.max_pixels=1000",)),
    ],
)  # fmt: skip
def test_a_run_lists_all_unreadable_images(
    vitslim: Callable[..., Any], recipe: Path, images: Path, tmp_path: Path, damage: Callable[[Path], None],
    words: list[str], values: tuple[str, ...],
) -> None:  # fmt: skip
    damage(images)
    outcome = vitslim("run", recipe, "--data", images, "--out", tmp_path / "out", *values)
    assert outcome.code == 5, outcome.err
    for word in words:
        assert word in outcome.err
    assert not (tmp_path / "out").exists()


def test_digits_keep_their_own_normalization(vitslim: Callable[..., Any]) -> None:
    outcome = vitslim("plan", "quickstart", "--no-trace", "model.preprocessing.mean=[0.5]", "data.val_fraction=0.5")
    assert outcome.code == 2
    assert "model.preprocessing.mean" in outcome.err and "data.val_fraction" in outcome.err
