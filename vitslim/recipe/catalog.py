"""Packaged recipes and weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitslim.errors import InputError, closest
from vitslim.recipe.document.yaml12 import read_yaml
from vitslim.recipe.stages.training import PACKAGE

if TYPE_CHECKING:
    from vitslim.recipe.schema import Recipe

SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class RecipeInfo:
    """A packaged recipe."""

    name: str
    description: str
    path: Path


def packaged_folder() -> Path:
    """Return the folder of the packaged recipes: inside the installed package, or `recipes/` of a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "_recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def packaged_recipes() -> tuple[RecipeInfo, ...]:
    """Return all packaged recipes in the order of their names, without those that only others extend (`base/...`)."""
    return tuple(
        RecipeInfo(path.stem, _description(read_yaml(path)), path) for path in sorted(packaged_folder().glob("*.yaml"))
    )


def packaged_path(name: str) -> Path | None:
    """Return the file of a packaged recipe (`quickstart`, `base/imagenet`); None if there is none of this name."""
    folder = packaged_folder()
    known = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    return known.get(name)


def packaged_names() -> list[str]:
    """Return the names of the packaged recipes, without those that only others extend."""
    return [path.stem for path in packaged_folder().glob("*.yaml")]


def resolve_checkpoint(recipe: Recipe) -> Path | None:
    """Return the checkpoint of a recipe, or None for random weights; `package:NAME` is a file that ships with vitslim.

    Raises InputError when a packaged file is missing. Other paths are checked when the file is read.
    """
    checkpoint = recipe.model.checkpoint
    if checkpoint is None or not checkpoint.startswith(PACKAGE):
        return None if checkpoint is None else Path(checkpoint)
    name = checkpoint.removeprefix(PACKAGE)
    folder = packaged_folder()
    files = {path.name: path for path in folder.glob("*.safetensors")}
    if name not in files:
        hint = (
            closest(name, files) if files else "no weights ship with this installation: set model.checkpoint to a file"
        )
        raise InputError(f"vitslim ships no file '{name}'", hint)
    return files[name]


def _description(document: Any) -> str:
    return str(document.get("description", "")) if isinstance(document, dict) else ""
