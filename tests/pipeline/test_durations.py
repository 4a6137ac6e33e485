"""How long stages take, from their work and the rates of a machine."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from vitslim.pipeline.duration.counts import planned_counts
from vitslim.pipeline.duration.estimate import (
    FILE_OVER_TRACE,
    FILE_SECONDS,
    FORWARD,
    RUNTIME,
    TRAINING,
    measuring_seconds,
    stage_seconds,
)
from vitslim.pipeline.duration.probe import Rates
from vitslim.pipeline.run.messages.run_time import ExpectedTime, say_duration
from vitslim.pipeline.run.stored.unchanged import run_digest
from vitslim.progress import Silent
from vitslim.recipe import validate
from vitslim.recipe.schema import Data, Recipe
from vitslim.recipe.work import ImageCounts, Work

COUNTS = ImageCounts(train=1000, calibration=100, evaluated=500)
RATES = Rates(macs_per_s=1e9, images_per_s=100.0)


def recipe_of(*stages: Any, profile: str = "portable", **keys: Any) -> Recipe:
    document = {
        "name": "timed",
        "model": {"timm": "deit_tiny_patch16_224"},
        "data": {"kind": "imagefolder", "root": "DIR"},
        "stages": [*stages, {"export": {"profile": profile}}],
    }
    return validate(document | keys, "test")


def work_of(stage: Any) -> Work:
    return recipe_of(stage, profile="ort-cpu").stages[0].work(COUNTS)


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ({"distill": {"train": {"epochs": 3, "images": 200}}}, Work(training=600, runtime=200, decoded=200)),
        (
            {"distill": {"train": {"epochs": 3, "images": 200, "augment": "light"}}},
            Work(training=600, runtime=600, decoded=600),
        ),
        (
            {"distill": {"teacher": {"timm": "vit_small_patch16_224"}, "train": {"epochs": 1}}},
            Work(training=1000, forward=1000, decoded=1000),
        ),
        (
            {"distill": {"teacher": "none", "train": {"epochs": 1, "images": 5000}}},
            Work(training=1000, decoded=1000),
        ),
        ({"token-squeeze": {"method": "diffrate"}}, Work(forward=100, training=200)),
        ({"prune": {"method": "two-four"}}, Work()),
        ({"prune": {"method": "two-four", "score": "wanda"}}, Work(forward=100, training=100)),
        ({"quantize": {"method": "ptq"}}, Work(forward=100 + 100 + 2 * 64, training=100 + 64)),
        ({"quantize": {"method": "ptq", "attention": True}}, Work(forward=200 + 100 + 2 * 64, training=100 + 64)),
        ({"quantize": {"method": "ptq", "activations": "float"}}, Work(forward=100 + 2 * 64, training=100)),
    ],
)
def test_a_stage_states_its_work(stage: Any, expected: Work) -> None:
    assert work_of(stage) == expected


def test_a_search_counts_its_candidates() -> None:
    fixed, auto = (work_of({"quantize": {"method": "ptq", "placement": one}}) for one in ("fixed", "auto"))
    assert auto.files > fixed.files == 0
    assert auto.runtime == 100 * auto.files


def test_seconds_are_work_over_rates() -> None:
    recipe = recipe_of({"distill": {"teacher": "none", "train": {"epochs": 2}}})
    dense, trained, exported = stage_seconds(recipe, [10**7] * 3, COUNTS, RATES, 2.5)
    evaluation, file = 500 * 0.01 / RUNTIME, FILE_SECONDS + 2.5 * FILE_OVER_TRACE
    assert dense == pytest.approx(evaluation + 6 + file)
    assert trained == pytest.approx(2000 * 3 * 0.01 / TRAINING + 10 + evaluation + file)
    assert exported == pytest.approx(64 * 0.01 / FORWARD + 128 * 0.01 / RUNTIME)
    report = recipe.report.model_copy(update={"backends": ("onnxruntime:cpu", "sim:a100"), "batches": (1, 8)})
    assert measuring_seconds(recipe.model_copy(update={"report": report})) == 2 * 2 * 2.0


def test_images_are_counted_without_opening_one(tmp_path: Path) -> None:
    for folder, count in (("train/a", 7), ("train/b", 5), ("val/a", 3), ("val/b", 3)):
        (tmp_path / folder).mkdir(parents=True)
        for number in range(count):
            (tmp_path / folder / f"{number}.png").write_bytes(b"")
    data = {"kind": "imagefolder", "root": str(tmp_path), "calibration": 256, "eval_images": 4}
    assert planned_counts(recipe_of(data=data).data) == ImageCounts(12, 12, 4)
    assert planned_counts(recipe_of(data={"kind": "digits"}).data) == ImageCounts(1437, 256, 360)
    assert planned_counts(Data(kind="imagefolder")) is None


def test_the_end_of_a_run_shows_the_error_of_the_estimate() -> None:
    said: list[str] = []

    class Messages(Silent):
        def say(self, message: str) -> None:
            said.append(message)

    say_duration(ExpectedTime({}, 10.0), time.monotonic() - 12, (), Messages())
    say_duration(None, time.monotonic() - 2, (), Messages())
    assert said == ["took 12 s, +20 % from the estimate", "took 2.0 s"]


def test_a_changed_image_checkpoint_or_key_changes_the_digest_of_a_run(tmp_path: Path) -> None:
    image, checkpoint = tmp_path / "train" / "a" / "0.png", tmp_path / "model.safetensors"
    image.parent.mkdir(parents=True)
    image.write_bytes(b"1")
    checkpoint.write_bytes(b"1")
    model = {"timm": "deit_tiny_patch16_224", "checkpoint": str(checkpoint)}
    data = {"kind": "imagefolder", "root": str(tmp_path / "train")}
    recipe = recipe_of(data=data, model=model)
    first = run_digest(recipe)
    assert first == run_digest(recipe)
    found = {first, run_digest(recipe.model_copy(update={"seed": 1}))}
    os.utime(image, (1, 1))
    found.add(run_digest(recipe))
    image.with_name("1.png").write_bytes(b"1")
    found.add(run_digest(recipe))
    checkpoint.write_bytes(b"2")
    found.add(run_digest(recipe))
    assert len(found) == 5
    checkpoint.unlink()
    assert run_digest(recipe) is None


def test_the_images_of_tables_and_links_and_the_list_of_classes_are_inputs_of_a_run(tmp_path: Path) -> None:
    linked, table, classes = tmp_path / "linked", tmp_path / "data" / "all.csv", tmp_path / "classes.txt"
    (linked / "a").mkdir(parents=True)
    image = linked / "a" / "0.png"
    table.parent.mkdir()
    for path in (image, table, classes, table.with_name("0.png")):
        path.write_bytes(b"1")
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "train").symlink_to(linked)
    (linked / "a" / "circle").symlink_to(tmp_path / "root")
    data = {"kind": "imagefolder", "root": str(tmp_path / "root"), "classes": str(classes)}
    for given, changed in ((data, image), (data, classes), (data | {"root": str(table)}, table.with_name("0.png"))):
        before = run_digest(recipe_of(data=given))
        changed.write_bytes(b"12" + changed.read_bytes())
        assert before and run_digest(recipe_of(data=given)) not in {before, None}
