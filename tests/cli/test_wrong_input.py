"""Invalid input: one sentence, a hint, the documented exit code, and no partial output."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

RECIPE = """
name: test
model:
  timm: vit_tiny_patch16_224
  kwargs: {img_size: 32, patch_size: 8, embed_dim: 64, depth: 2, num_heads: 2, num_classes: 2}
data: {kind: imagefolder, root: IMAGES, calibration: 4}
stages:
  - quantize: {method: ptq}
  - export
report: {seconds: 0.1}
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for split in ("train", "val"):
        for position, name in enumerate(("cat", "dog")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (40, 40), (80 * position + 40, 20 * number, 90)).save(folder / f"{number}.png")
    return root


@pytest.fixture
def recipe(tmp_path: Path, images: Path) -> Callable[..., Path]:
    """Writes the test recipe with some text replaced."""

    def write(*changes: tuple[str, str]) -> Path:
        text = dedent(RECIPE).replace("IMAGES", str(images))
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "test.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("change", "code", "expected"),
    [
        (("method: ptq", "method: ptq, bitz: 8"), 2, ["stages.0.quantize.bitz", "hint: did you mean 'bits'"]),
        (("quantize: {method: ptq}", "prune: {method: depgrap}"), 2, ["depgrap", "did you mean 'depgraph'"]),
        (("quantize: {method: ptq}", "prune: {method: depgraph, pruning_ratio: half}"), 2, ["'half'", "number"]),
        (("  - export\n", ""), 2, ["export", "hint:"]),
        (("  - export\n", "  - export\n  - prune: {method: depgraph}\n"), 2, ["export", "last"]),
        (
            ("  - quantize: {method: ptq}\n", "  - quantize: {method: ptq}\n  - prune: {method: depgraph}\n"),
            2,
            ["must come before quantize"],
        ),
        (("vit_tiny_patch16_224", "vit_tiny_patch16_242"), 2, ["vit_tiny_patch16_242", "did you mean"]),
        (("embed_dim: 64", "embed_dimension: 64"), 2, ["embed_dimension", "hint:"]),
        (("quantize: {method: ptq}", "token-squeeze: {method: etps, blocks: [7]}"), 2, ["7", "2 blocks"]),
        (("num_classes: 2}", "num_classes: 0}\n  task: classify"), 2, ["model.task", "needs a classifier"]),
        (("num_classes: 2}", "num_classes: 2}\n  task: features"), 2, ["model.task", "hint: set `num_classes: 0`"]),
        (("num_classes: 2}", "num_classes: 0}\ngates: {top1_min: 50}"), 2, ["gates.top1_min", "`task: features`"]),
        (("num_classes: 2}", "num_classes: 2}\ngates: {cosine_min: 0.9}"), 2, ["gates.cosine_min", "`task: classify`"]),
        (("num_classes: 2}", "num_classes: 2}\n  task: multilabel"), 2, ["model.task", "have one label each", "hint:"]),
        (("  - export\n", "  - export: {opset: 16}\n"), 2, ["export.opset", "an integer from 17 to 23"]),
        (("  - export\n", "  - export: {batch: 8}\n"), 2, ["report.batches", "`batch: 8` only", "hint:"]),
        (("  - export\n", "  - export: {layout: hf, input_name: x}\n"), 2, ["export.input_name", "hint: remove"]),
        (
            ("{method: ptq}\n  - export", "{method: ptq, bits: 4}\n  - export: {opset: 18}"),
            2,
            ["the weights of `quantize` need opset 21, got `opset: 18`", "hint: set `opset: 21`"],
        ),
    ],
)
def test_an_invalid_recipe_is_refused(
    vitslim: Callable[..., Any], recipe: Callable[..., Path], tmp_path: Path, change: tuple[str, str], code: int,
    expected: list[str],
) -> None:  # fmt: skip
    outcome = vitslim("run", recipe(change), "--out", tmp_path / "out")
    assert outcome.code == code, outcome.err
    for words in expected:
        assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_model_that_the_layout_cannot_describe_is_refused_by_plan(
    vitslim: Callable[..., Any], recipe: Callable[..., Path]
) -> None:
    gray = recipe(("num_classes: 2}", "num_classes: 2, in_chans: 1}"), ("  - export\n", "  - export: {layout: hf}\n"))
    outcome = vitslim("plan", gray)
    assert outcome.code == 2
    assert "stages.1.export.layout" in outcome.err and "takes 1" in outcome.err
    assert "hint: use `layout: plain`" in outcome.err


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("distill: {loss: {hard: 1}}", ["stages.0.distill.loss.hard", "got `hard: 1`", "hint: remove `hard`"]),
        ("distill: {teacher: none}", ["stages.0.distill.teacher", "hint: set `teacher: dense`"]),
        ("prune: {method: nvit}", ["stages.0.prune.method", "needs a model with classes", "hint:"]),
    ],
)
def test_a_stage_that_needs_labels_is_refused_for_a_feature_extractor(
    vitslim: Callable[..., Any], recipe: Callable[..., Path], stage: str, expected: list[str]
) -> None:
    path = recipe(("num_classes: 2}", "num_classes: 0}"), ("quantize: {method: ptq}", stage))
    outcome = vitslim("plan", path, "--no-trace")
    assert outcome.code == 2, outcome.err
    for words in expected:
        assert words in outcome.err


def test_tokens_of_maps_and_accelerators_of_classifiers_are_refused_by_the_plan(
    vitslim: Callable[..., Any], recipe: Callable[..., Path]
) -> None:
    maps = ("num_classes: 2}", "num_classes: 0, global_pool: ''}")
    squeeze = ("quantize: {method: ptq}", "token-squeeze: {method: etps, blocks: [0]}")
    backend = ("report: {seconds: 0.1}", "report: {backends: ['sim:spatten']}")
    outcome = vitslim("plan", recipe(maps, squeeze, backend))
    assert outcome.code == 2, outcome.err
    assert "stages.0.token-squeeze: the outputs of the model are maps of all its tokens" in outcome.err
    assert "report.backends.0: sim:spatten cannot compute" in outcome.err
    assert "the task of the model is features" in outcome.err


def test_all_problems_are_reported_at_once(vitslim: Callable[..., Any], recipe: Callable[..., Path]) -> None:
    path = recipe(("calibration: 4", "calibration: many, shuffle: true"), ("seconds: 0.1", "seconds: -1"))
    outcome = vitslim("run", path)
    assert outcome.code == 2
    for where in ("data.calibration", "data.shuffle", "report.seconds"):
        assert where in outcome.err


class TestFiles:
    """Files that are missing or corrupt: exit code 5, and no artifact."""

    @pytest.fixture
    def fails(self, vitslim: Callable[..., Any], tmp_path: Path) -> Callable[..., str]:
        def call(path: Path, *arguments: object) -> str:
            outcome = vitslim("run", path, "--out", tmp_path / "out", *arguments)
            assert outcome.code == 5, outcome.err
            assert "hint:" in outcome.err
            assert not (tmp_path / "out").exists()
            assert not list(tmp_path.glob("out.stages/[!.]*"))
            return str(outcome.err)

        return call

    def test_a_missing_checkpoint_is_refused(self, fails: Callable[..., str], recipe: Callable[..., Path]) -> None:
        assert "nowhere.safetensors" in fails(recipe(), "--checkpoint", "nowhere.safetensors")

    def test_a_checkpoint_of_another_architecture_is_refused(
        self, fails: Callable[..., str], recipe: Callable[..., Path], tmp_path: Path
    ) -> None:
        save_file({"conv1.weight": torch.zeros(3, 3)}, tmp_path / "other.safetensors")
        assert "conv1.weight" in fails(recipe(), "--checkpoint", tmp_path / "other.safetensors")

    def test_a_checkpoint_that_is_not_safetensors_is_refused(
        self, fails: Callable[..., str], recipe: Callable[..., Path], tmp_path: Path
    ) -> None:
        (tmp_path / "bad.safetensors").write_bytes(b"not a checkpoint")
        assert "bad.safetensors" in fails(recipe(), "--checkpoint", tmp_path / "bad.safetensors")

    def test_a_missing_image_folder_is_refused(
        self, fails: Callable[..., str], recipe: Callable[..., Path], tmp_path: Path
    ) -> None:
        assert "nothing-here" in fails(recipe(), "--data", tmp_path / "nothing-here")

    def test_an_empty_image_folder_is_refused(
        self, fails: Callable[..., str], recipe: Callable[..., Path], tmp_path: Path
    ) -> None:
        (tmp_path / "empty" / "train").mkdir(parents=True)
        (tmp_path / "empty" / "val").mkdir()
        fails(recipe(), "--data", tmp_path / "empty")

    def test_a_corrupt_image_is_refused(
        self, fails: Callable[..., str], recipe: Callable[..., Path], images: Path
    ) -> None:
        (images / "val" / "dog" / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
        assert "2.png" in fails(recipe())


def test_an_output_folder_must_be_writable(
    vitslim: Callable[..., Any], recipe: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    outcome = vitslim("run", recipe(), "--out", tmp_path / "file" / "out")
    assert outcome.code == 2
    assert "--out" in outcome.err


def test_a_folder_that_is_not_an_artifact_is_not_overwritten(
    vitslim: Callable[..., Any], recipe: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    outcome = vitslim("run", recipe(), "--out", tmp_path / "out")
    assert outcome.code == 2
    assert (tmp_path / "out" / "thesis.tex").read_text() == "precious"


def test_frozen_needs_a_lock_file_and_its_values(vitslim: Callable[..., Any], recipe: Callable[..., Path]) -> None:
    for arguments, message in (((), "is not a lock file"), (("seed=1",), "allows no other values")):
        outcome = vitslim("run", recipe(), *arguments, "--frozen")
        assert outcome.code == 2
        assert message in outcome.err
        assert "hint: " in outcome.err
