"""Packaged recipes, and the lookup of a recipe by name or path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitslim.errors import InputError, UsageError, closest
from vitslim.recipe.stages.training import PACKAGE
from vitslim.recipe.yaml12 import read_yaml

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


def find_recipe(name: str, beside: Path | None = None) -> Path:
    """Return the file of a packaged recipe (`quickstart`, `base/imagenet`) or of a path relative to `beside`.

    Raises UsageError, naming the closest recipe, when there is no such file.
    """
    packaged = _packaged_path(name)
    if packaged is not None:
        return packaged
    path = Path(name) if beside is None else beside / name
    try:
        if path.is_file():
            return path
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:
        raise UsageError(f"'{name[:200]}' is not a usable file name", "give a packaged name or a YAML file") from error
    if is_folder:
        raise UsageError(f"'{name}' is a folder, not a recipe", "give a packaged name or a YAML file")
    raise UsageError(f"there is no recipe '{name}'", closest(Path(name).name, _neighbors(path)))


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


def _packaged_path(name: str) -> Path | None:
    folder = packaged_folder()
    known = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    return known.get(name)


def _neighbors(path: Path) -> list[str]:
    names = [info.stem for info in packaged_folder().glob("*.yaml")]
    if path.suffix in SUFFIXES and path.parent.is_dir():
        names += [file.name for file in path.parent.iterdir() if file.suffix in SUFFIXES]
    return names


def _description(document: Any) -> str:
    return str(document.get("description", "")) if isinstance(document, dict) else ""
