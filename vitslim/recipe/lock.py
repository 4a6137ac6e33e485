"""Writing of recipes: all defaults filled in, the lock file of a run, and the list of assumed values."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

from pydantic import BaseModel, Field, ValidationError

from vitslim.errors import Problem, RecipeError, UsageError
from vitslim.recipe.config import ASSUMED, Config
from vitslim.recipe.document.check import join
from vitslim.recipe.document.grammar import LOCKED, write_stage
from vitslim.recipe.document.yaml12 import dump_yaml, read_yaml
from vitslim.recipe.schema import Recipe
from vitslim.recipe.sources import find_recipe
from vitslim.recipe.sources.document_paths import change_paths
from vitslim.recipe.stages.training import Features, TrainedWithTeacher


class Assumed(TypedDict):
    """A recipe key whose default value is not confirmed by any source."""

    key: str
    value: str


class Locked(Config):
    """The inputs of a run that its lock file records."""

    versions: dict[str, str] = Field(description="versions of Python, vitslim and the libraries")
    digests: dict[str, str] = Field(description="SHA-256 of the code of vitslim, the data and every file read")

    def differences(self, here: Locked) -> tuple[Problem, ...]:
        """Return a problem for each recorded input that is missing or different in `here`."""
        found = [Problem(f"{LOCKED}.versions.{name}", _differs(version, here.versions.get(name)), f"install {version}")
                 for name, version in self.versions.items() if here.versions.get(name) != version]  # fmt: skip
        hint = "use the file of the locked run, or run without --frozen"
        return (*found, *(
            Problem(f"{LOCKED}.digests.{name}", _differs(digest[:12], here.digests.get(name, "")[:12]), hint)
            for name, digest in self.digests.items() if here.digests.get(name) != digest
        ))  # fmt: skip


def _differs(locked: str, here: str | None) -> str:
    return f"got {here or 'none'}, the locked run had {locked}"


def read_locked(name_or_path: str | Path) -> Locked:
    """Return the inputs that a lock file records.

    Raises UsageError if the file does not exist or is not a lock file, RecipeError if the entry is invalid.
    """
    path = find_recipe(str(name_or_path)).path
    document = read_yaml(path)
    entry = document.get(LOCKED) if isinstance(document, dict) else None
    if entry is None:
        raise UsageError(f"'{name_or_path}' is not a lock file", "give the recipe.lock.yaml of a finished run")
    try:
        return Locked.model_validate(entry)
    except ValidationError as error:
        problems = [Problem(join(LOCKED, ".".join(map(str, one["loc"]))), one["msg"]) for one in error.errors()]
        raise RecipeError(problems, str(path)) from error


def recipe_text(recipe: Recipe) -> str:
    """Return the recipe as YAML with all defaults filled in; loading it gives the same recipe."""
    return dump_yaml(recipe_document(recipe))


def lock_text(recipe: Recipe, inputs: Locked) -> str:
    """Return the recipe of a run as YAML, with absolute paths, library versions and SHA-256 digests of the inputs."""
    document = recipe_document(recipe)
    change_paths(document, lambda named: str(Path(named.path).absolute()))
    document[LOCKED] = inputs.model_dump()
    return "# Written by vitslim. `vitslim run --frozen` on this file repeats the run.\n" + dump_yaml(document)


def assumptions(recipe: Recipe) -> tuple[Assumed, ...]:
    """Return the keys that a recipe leaves at an assumed default."""
    found: list[Assumed] = []
    for position, config in enumerate(recipe.stages):
        found += _assumed(config, f"stages.{position}.{config.kind}")
    return tuple(found)


def _assumed(config: BaseModel, where: str) -> Iterator[Assumed]:
    for key, field in type(config).model_fields.items():
        value, extra = getattr(config, key), field.json_schema_extra
        if isinstance(value, Features) and isinstance(config, TrainedWithTeacher) and config.loss.feature == 0:
            continue  # these keys have no effect
        if isinstance(value, BaseModel):
            yield from _assumed(value, join(where, key))
        elif isinstance(extra, dict) and ASSUMED in extra and key not in config.model_fields_set:
            yield Assumed(key=join(where, key), value=str(value))


def recipe_document(recipe: Recipe) -> dict[str, Any]:
    """Return the document of a recipe with all defaults filled in, as `recipe_text` writes it."""
    document = recipe.model_dump(mode="json")
    document["stages"] = [write_stage(config) for config in recipe.stages]
    return document
