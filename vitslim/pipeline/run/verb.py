"""The verb `run`: check the recipe, then execute it. A recipe that is refused never imports torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vitslim.errors import Problem, RecipeError
from vitslim.pipeline.check import check_recipe
from vitslim.pipeline.run_folders import stages_folder
from vitslim.progress import Progress, Silent
from vitslim.ranks import is_first_launched, launched_ranks
from vitslim.recipe import Locked
from vitslim.recipe.schema import Recipe

if TYPE_CHECKING:
    from vitslim.pipeline.run.stored.artifact import Artifact


def run(
    recipe: Recipe,
    out: Path,
    *,
    fresh: bool = False,
    progress: Progress | None = None,
    locked: Locked | None = None,
) -> Artifact:
    """Carry out a recipe and write the artifact to `out`; finished stages are kept in `OUT.stages` and reused.

    Under torchrun, all ranks call this function; the ranks share the images, rank 0 writes the files, and all return
    the artifact. `out` must be on a file system that all ranks see.
    If nothing has changed since the run that wrote `out`, its artifact is returned as it is; several ranks measure it
    again.
    Gates that fail are in the report; the caller decides how to react. locked: inputs of an earlier run, which those of
    this run must equal.
    Raises RecipeError, also if the inputs differ from `locked`; RankLostError if another rank is gone; InputError,
    StageError, UsageError, or BackendUnavailableError, which comes before the first stage; nothing half-written stays
    behind.
    """
    warnings = check_recipe(recipe)
    check_ranks(recipe)
    progress, stages = progress or Silent(), stages_folder(out)
    from vitslim.pipeline.run.messages.run_events import run_finished, run_started
    from vitslim.pipeline.run.stored.unchanged import remember_run, run_digest, unchanged_artifact

    inputs = run_digest(recipe)
    may_return = not fresh and locked is None and launched_ranks() == 1
    if inputs and may_return and (found := unchanged_artifact(inputs, out, stages)) is not None:
        run_started(progress, recipe)
        progress.say(f"nothing has changed since the run in '{out}'; --fresh runs it again")
        run_finished(progress, found)
        return found
    from vitslim.pipeline.bench.table_cache import resolve_tables
    from vitslim.pipeline.run.runner import execute
    from vitslim.training.engine.rank_group import joined_ranks

    if launched_ranks() > 1 and is_first_launched():
        # Alone, before the ranks join: a table may need a calibration, which ranks that have joined would share.
        recipe = resolve_tables(recipe, progress, build=True)
    with joined_ranks():
        artifact = execute(recipe, out, fresh, progress, warnings, locked)
    if inputs and is_first_launched():
        remember_run(inputs, out, stages)
    return artifact


def check_ranks(recipe: Recipe) -> None:
    """Raise RecipeError if the ranks that torchrun started cannot share the batches of a recipe evenly."""
    ranks, problems = launched_ranks(), []
    for position, config in enumerate(recipe.stages):
        training = config.training
        if training is None or ranks == 1:
            continue
        parts = ranks * training.accumulate * training.repeated_augmentation * (2 if training.has_mixing else 1)
        if training.batch % parts:
            reason = ", for which mixup and cutmix need pairs of images" if training.has_mixing else ""
            message = f"{ranks} ranks cannot share batches of {training.batch} images evenly{reason}"
            hint = f"set `batch` to a multiple of {parts}, such as {-(-training.batch // parts) * parts}"
            key = "train" if "train" in type(config).model_fields else "group_sparsity.train"
            problems.append(Problem(f"stages.{position}.{config.kind}.{key}.batch", message, hint))
    if problems:
        raise RecipeError(problems, recipe.name)
