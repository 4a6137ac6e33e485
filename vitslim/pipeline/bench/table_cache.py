"""Latency tables that were built before, kept by model, backend, device and version."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from vitslim.backends.environment import environment
from vitslim.backends.registry import Backend, Measured, parse_backend
from vitslim.errors import InputError
from vitslim.files import user_cache
from vitslim.latency_grid import Precision
from vitslim.pipeline.bench.latency_table import build_table
from vitslim.pipeline.table_file import cost_target, default_path, kept_table
from vitslim.progress import Progress
from vitslim.recipe.backend_names import SIM
from vitslim.recipe.schema import Model, Recipe
from vitslim.recipe.stage_config import StageConfig
from vitslim.results import LatencyTable

KEY_LENGTH = 12


def default_cache() -> Path:
    """Return the folder `vitslim/tables` in the user's cache folder."""
    return user_cache("tables")


def cached_table(
    model: Model, backend: Backend, batch: int, threads: int, precision: Precision, cache: Path, progress: Progress
) -> LatencyTable:
    """Return the table of the cache, or build it and keep it there; see `build_table`.

    Raises the errors of `build_table`, and InputError if the folder cannot be written.
    """
    path = cache / _file_name(model, backend, batch, threads, precision)
    return kept_table(
        path, lambda: build_table(model, backend, batch, threads, progress, precision=precision), progress
    )


def resolve_tables(recipe: Recipe, progress: Progress, *, build: bool) -> Recipe:
    """Return the recipe with the path of a table in place of each `backend` of a cost target.

    The table is that of the user's cache. If there is none, it is built, or else InputError is raised without `build`.
    """
    return recipe.model_copy(update={"stages": tuple(_resolved(config, recipe.model, progress, build)
                                                     for config in recipe.stages)})  # fmt: skip


def _resolved(config: StageConfig, model: Model, progress: Progress, build: bool) -> StageConfig:
    found = cost_target(config)
    if found is None or found[1].backend is None:
        return config
    key, target = found
    backend, cache = parse_backend(target.backend or ""), default_cache()
    path = cache / _file_name(model, backend, target.batch, 1, target.precision)
    if not path.exists():
        if not build:
            precision = "" if target.precision == "float32" else f" --precision {target.precision}"
            command = f"vitslim bench --table {model.name} --backend {backend.name} --batch {target.batch}{precision}"
            raise InputError(
                f"there is no latency table of {model.name} on {backend.name} in {cache} yet",
                f"`vitslim run` builds it, or {command}",
            )
        cached_table(model, backend, target.batch, 1, target.precision, cache, progress)
    resolved = target.model_copy(update={"table": str(path), "backend": None})
    return config.model_copy(update={key: resolved})


def _file_name(model: Model, backend: Backend, batch: int, threads: int, precision: Precision) -> str:
    """Return a name that is equal for equal inputs of a table, among them device and versions for measured ones."""
    here = environment()
    inputs = {"model": model.model_dump(mode="json", exclude={"checkpoint"}), "backend": backend.name,
              "batch": batch, "precision": precision, "vitslim": here.versions["vitslim"]}  # fmt: skip
    if isinstance(backend, Measured):
        inputs |= {"threads": threads, "device": here.device, "versions": here.versions}
    settings = Path(backend.name.removeprefix(SIM))
    if settings.is_file():
        inputs["settings"] = hashlib.sha256(settings.read_bytes()).hexdigest()
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:KEY_LENGTH]
    return f"{default_path(model.name, backend.name).stem}.{key}.json"
