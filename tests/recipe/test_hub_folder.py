"""Model folders in the layout of the Hugging Face Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vitslim.errors import InputError, RecipeError
from vitslim.recipe import load_recipe
from vitslim.recipe.hub_folder import hub_files, read_hub_folder

CONFIG: dict[str, Any] = {
    "architecture": "vit_tiny_patch16_224",
    "model_args": {"depth": 2, "norm_layer": None},
    "pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "crop_pct": 1, "interpolation": "bicubic", "first_conv": "x"},
}


def model_folder(folder: Path, config: Any, weights: str = "model.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / weights).write_bytes(b"weights")
    (folder / "config.json").write_text(config if isinstance(config, str) else json.dumps(config), encoding="utf-8")
    return folder


def test_config_gives_architecture_arguments_and_preprocessing(tmp_path: Path) -> None:
    found = read_hub_folder(model_folder(tmp_path / "model", CONFIG, "pytorch_model.bin"))
    assert (found.weights.name, found.architecture) == ("pytorch_model.bin", "vit_tiny_patch16_224")
    assert found.arguments == {"depth": 2}
    assert found.preprocessing == {"mean": (0.5, 0.5, 0.5), "crop_pct": 1.0, "interpolation": "bicubic"}


def test_mean_and_std_of_transformers(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", {"model_type": "vit"})
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.1, 0.2, 0.3], "size": 224}', encoding="utf-8")
    found = read_hub_folder(folder)
    assert (found.architecture, found.preprocessing) == ("", {"mean": (0.1, 0.2, 0.3)})
    assert [path.name for path in hub_files(folder)] == ["model.safetensors", "config.json", "preprocessor_config.json"]


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("{", "not a JSON file"),
        ("[1]", "does not hold an object"),
        ({"pretrained_cfg": {"mean": "0.5"}}, "mean"),
        ({"pretrained_cfg": {"std": [0.1, 0, 0.1]}}, r"std\.1"),
        ({"pretrained_cfg": {"interpolation": "magic"}}, "interpolation"),
        ({"pretrained_cfg": {"input_size": [3, 224]}}, "input_size"),
    ],
)
def test_a_damaged_config_is_refused_with_the_key(config: Any, word: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=word) as error:
        read_hub_folder(model_folder(tmp_path / "model", config))
    assert "name the file with the weights" in error.value.hint


def test_a_recipe_without_a_model_takes_that_of_the_folder(tmp_path: Path) -> None:
    model_folder(tmp_path / "model", CONFIG)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: mine\nmodel: {checkpoint: model}\ndata: {kind: digits}\nstages: [export]\n", encoding="utf-8"
    )
    assert load_recipe(recipe).model.timm == "vit_tiny_patch16_224"
    model_folder(tmp_path / "model", {"model_type": "vit"})
    with pytest.raises(RecipeError) as error:
        load_recipe(recipe)
    assert [problem.where for problem in error.value.problems] == ["model.timm"]
