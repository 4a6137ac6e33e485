"""Loading of recipes: read the file, apply `extends` and overrides, validate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitslim.errors import InputError, Problem, RecipeError, UsageError
from vitslim.recipe.document.check import join, shown
from vitslim.recipe.document.grammar import EXTENDS, FILE_KEYS, check_document, read_stage
from vitslim.recipe.document.overrides import apply_overrides
from vitslim.recipe.document.yaml12 import read_yaml
from vitslim.recipe.hub_folder import read_hub_folder
from vitslim.recipe.schema import FILE_KINDS, Recipe
from vitslim.recipe.sources import RecipeFile, find_recipe
from vitslim.recipe.sources.document_paths import change_paths

MAX_EXTENDS = 8


def load_recipe(name_or_path: str | Path, overrides: Sequence[str] = (), *, partial: bool = False) -> Recipe:
    """Load a recipe, apply `extends` and the `KEY=VALUE` overrides, and validate the result.

    name_or_path: a packaged name, a YAML file, a zip that `vitslim recipes pack` wrote, or `git+URL@COMMIT#PATH`.
    Relative paths in a file are relative to that file; those in overrides are relative to the working directory.
    `partial` accepts a recipe without an image folder, which is enough for a plan.
    Raises UsageError when the file does not exist, RecipeError with every problem found, InputError for an archive or
    a repository that cannot be read.
    """
    source = str(name_or_path)
    document = _read(find_recipe(source), ())
    problems = apply_overrides(document, overrides)
    problems += _fill_model(document)
    return _validated(document, source, problems, partial)


def validate(document: Mapping[str, Any], source: str = "recipe", *, partial: bool = False) -> Recipe:
    """Validate a recipe given as a mapping. `extends` needs a file and is refused here.

    Raises RecipeError with every problem: its path, the value received, the values allowed, and a hint.
    """
    if not isinstance(document, Mapping):
        raise RecipeError([_not_a_mapping(document)], source)
    found = [Problem(EXTENDS, "only a recipe file can extend another", "load it with load_recipe")]
    return _validated(document, source, found if EXTENDS in document else [], partial)


def _validated(document: Mapping[str, Any], source: str, problems: list[Problem], partial: bool) -> Recipe:
    found = problems + [problem for problem in check_document(document) if problem not in problems]
    found += _missing_model(document)
    if not partial:
        found += _missing_root(document)
    if found:
        raise RecipeError(found, source)
    values = {key: value for key, value in document.items() if key not in FILE_KEYS}
    stages = tuple(read_stage(entry) for entry in document["stages"])
    return Recipe.model_validate({**values, "stages": stages}, strict=False)


def _read(file: RecipeFile, seen: tuple[Path, ...]) -> dict[str, Any]:
    """Return the document of a file, merged over the recipe that it extends; `seen` are the files that extend it."""
    document = read_document(file)
    problems: list[Problem] = []
    change_paths(document, lambda named: file.rebase(named, problems))
    if problems:
        raise RecipeError(problems, str(file.path))
    if EXTENDS not in document:
        return document
    base = find_base(document.pop(EXTENDS), file, seen)
    return _merged(_read(base, (*seen, file.path.resolve())), document)


def read_document(file: RecipeFile) -> dict[str, Any]:
    """Return the mapping of a recipe file, as it is written. Raises RecipeError if the file holds no mapping."""
    document = read_yaml(file.path)
    if not isinstance(document, dict):
        raise RecipeError([_not_a_mapping(document)], str(file.path))
    return document


def find_base(name: Any, file: RecipeFile, seen: tuple[Path, ...] = ()) -> RecipeFile:
    """Return the recipe that `file` extends; `seen` are the files that extend `file`.

    Raises RecipeError if there is no such recipe, or recipes extend each other in a circle or too often.
    """
    path, chain = str(file.path), (*seen, file.path.resolve())
    if not isinstance(name, str) or not name:
        found = Problem(EXTENDS, f"got {shown(name)}, expected a packaged recipe or a file", "write its name")
        raise RecipeError([found], path)
    try:
        base = find_recipe(name, file)
    except UsageError as error:
        raise RecipeError([Problem(EXTENDS, error.message, error.hint)], path) from error
    if base.path.resolve() in chain:
        circle = " -> ".join(one.name for one in (*chain, base.path))
        raise RecipeError(
            [Problem(EXTENDS, f"recipes extend each other in a circle: {circle}", "remove one `extends`")], path
        )
    if len(chain) > MAX_EXTENDS:
        message = f"more than {MAX_EXTENDS} recipes extend each other"
        raise RecipeError([Problem(EXTENDS, message, "merge some of them into one file")], path)
    return base


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with the values of `over`: mappings are merged, other values are replaced."""
    result = dict(base)
    for key, value in over.items():
        inner = result.get(key)
        result[key] = _merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def _fill_model(document: dict[str, Any]) -> list[Problem]:
    """Take `model.timm` from the folder that `model.checkpoint` names, if the recipe does not set it."""
    model = document.get("model")
    checkpoint = model.get("checkpoint") if isinstance(model, dict) else None
    if not isinstance(model, dict) or "timm" in model or not isinstance(checkpoint, str):
        return []
    try:
        architecture = read_hub_folder(Path(checkpoint)).architecture if Path(checkpoint).is_dir() else ""
    except InputError as error:
        return [Problem(join("model", "checkpoint"), error.message, error.hint)]
    if architecture:
        model["timm"] = architecture
    return []


def _missing_model(document: Mapping[str, Any]) -> list[Problem]:
    """Return a problem for a model without an architecture."""
    model = document.get("model")
    if not isinstance(model, Mapping) or "timm" in model or "revit" in model:
        return []
    message = "required key missing, expected the name of a timm model, or the key `revit`"
    return [Problem("model.timm", message, "for example deit_tiny_patch16_224")]


def _missing_root(document: Mapping[str, Any]) -> list[Problem]:
    data, model = document.get("data"), document.get("model")
    if not isinstance(data, dict) or data.get("kind") not in FILE_KINDS or data.get("root") is not None:
        return []
    hint = "--set data.root=DIR, where DIR holds train/ and val/ with one folder per class"
    if isinstance(model, dict) and model.get("checkpoint") is None:
        hint += "; --set model.checkpoint=FILE for trained weights"
    return [Problem(join("data", "root"), "required key missing, expected an image folder", hint)]


def _not_a_mapping(document: object) -> Problem:
    message = f"got {shown(document)}, expected a mapping with keys such as name, model, data and stages"
    return Problem("", message, "`vitslim recipes new NAME` prints a recipe to start from")
