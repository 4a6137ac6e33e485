"""Writing of recipes: all defaults filled in, the lock file of a run, and the list of assumed values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict

from pydantic import BaseModel

from vitslim.recipe.check import join
from vitslim.recipe.config import ASSUMED
from vitslim.recipe.grammar import LOCKED, write_stage
from vitslim.recipe.schema import CLASS_ORDERS, Recipe
from vitslim.recipe.stage_config import STAGE_FILES
from vitslim.recipe.stages.training import PACKAGE, Features, TrainedWithTeacher
from vitslim.recipe.yaml12 import dump_yaml


class Assumed(TypedDict):
    """A recipe key whose default value is not confirmed by any source."""

    key: str
    value: str


def recipe_text(recipe: Recipe) -> str:
    """Return the recipe as YAML with all defaults filled in; loading it gives the same recipe."""
    return dump_yaml(_document(recipe))


def lock_text(recipe: Recipe, *, versions: Mapping[str, str], digests: Mapping[str, str]) -> str:
    """Return the recipe of a run as YAML, with absolute paths, library versions and SHA-256 digests of the inputs."""
    document = _document(recipe)
    document["model"]["checkpoint"] = _absolute(recipe.model.checkpoint)
    document["data"]["root"] = _absolute(recipe.data.root)
    if isinstance(recipe.data.classes, str) and recipe.data.classes not in CLASS_ORDERS:
        document["data"]["classes"] = _absolute(recipe.data.classes)
    document["data"]["also_evaluate"] = {name: _absolute(path) for name, path in recipe.data.also_evaluate.items()}
    for entry in document["stages"]:
        values = next(iter(entry.values()))
        for key, name in STAGE_FILES:
            found = values.get(key)
            for holder in found if isinstance(found, list) else [found]:
                if isinstance(holder, dict):
                    holder[name] = _absolute(holder[name])
    document[LOCKED] = {"versions": dict(versions), "digests": dict(digests)}
    return "# Written by vitslim. `vitslim run` on this file repeats the run.\n" + dump_yaml(document)


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


def _document(recipe: Recipe) -> dict[str, Any]:
    document = recipe.model_dump(mode="json")
    document["stages"] = [write_stage(config) for config in recipe.stages]
    return document


def _absolute(path: str | None) -> str | None:
    return path if path is None or path.startswith(PACKAGE) else str(Path(path).absolute())
