"""The verb `run`: check the recipe, then execute it. A recipe that is refused never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitslim.pipeline.check import check_recipe
from vitslim.pipeline.run_folders import stages_folder
from vitslim.progress import Progress, Silent
from vitslim.recipe import Locked
from vitslim.recipe.schema import Recipe

if TYPE_CHECKING:
    from vitslim.pipeline.run.artifact import Artifact


def run(
    recipe: Recipe,
    out: Path,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
    locked: Locked | None = None,
) -> Artifact:
    """Carry out a recipe and write the artifact to `out`; finished stages are kept in `OUT.stages` and reused.

    If nothing has changed since the run that wrote `out`, its artifact is returned as it is.
    Gates that fail are in the report; the caller decides how to react. locked: inputs of an earlier run, which those of
    this run must equal.
    Raises RecipeError, also if the inputs differ from `locked`; InputError, StageError, UsageError, or
    BackendUnavailableError, which comes before the first stage; nothing half-written stays behind.
    """
    warnings = check_recipe(recipe)
    progress, stages = progress or Silent(), stages_folder(out)
    from vitslim.pipeline.run.unchanged import remember_run, run_digest, unchanged_artifact

    inputs = run_digest(recipe)
    if inputs and not fresh and locked is None and (found := unchanged_artifact(inputs, out, stages)) is not None:
        progress.say(f"nothing has changed since the run in '{out}'; --fresh runs it again")
        return found
    from vitslim.pipeline.run.runner import execute

    artifact = execute(recipe, out, fresh, progress, warnings, locked)
    if inputs:
        remember_run(inputs, out, stages)
    return artifact
