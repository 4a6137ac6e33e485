"""From a checked recipe to an artifact: trace, run each stage, measure, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitslim.backends.environment import environment
from vitslim.backends.registry import parse_backend
from vitslim.data import DataModule, load_data
from vitslim.errors import InputError, RecipeError
from vitslim.files import MANIFEST_FILE
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.pipeline.accelerators import approximating, approximation_of
from vitslim.pipeline.bench.table_cache import resolve_tables
from vitslim.pipeline.dense_model import trace_dense
from vitslim.pipeline.file_details import operator_profiles, two_four_uses
from vitslim.pipeline.latency import measure_files
from vitslim.pipeline.model_task import resolve_task
from vitslim.pipeline.plan import device_warnings, estimate_stages, input_problems
from vitslim.pipeline.run.accelerator_runs import accelerator_results
from vitslim.pipeline.run.arrangement import layout_files
from vitslim.pipeline.run.artifact import Artifact, check_replaceable, load_artifact, write_artifact
from vitslim.pipeline.run.class_order import resolve_class_order
from vitslim.pipeline.run.gates import judge
from vitslim.pipeline.run.keys import dense_key, input_digests, snapshot_key, stage_key
from vitslim.pipeline.run.resolve import resolve_reduce_range
from vitslim.pipeline.run.run_warnings import accuracy_warnings, latency_regressions, noisy_speedups
from vitslim.pipeline.run.stage_run import StageRunner
from vitslim.pipeline.run.store import StageStore, StoredStage, wait_for_file
from vitslim.pipeline.run.token_pictures import token_pictures
from vitslim.progress import Progress
from vitslim.ranks import rank, rank_count
from vitslim.recipe import Locked, assumptions, lock_text, resolve_checkpoint
from vitslim.recipe.plugins import plugins_of
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stage_config import Phase
from vitslim.results import Environment, LayerNote, Report, StageRecord, TokenPicture
from vitslim.training.device import find_device
from vitslim.training.engine.collectives import on_first_rank, wait_for_ranks


def execute(
    recipe: Recipe, out: Path, fresh: bool, progress: Progress, warnings: tuple[str, ...], locked: Locked | None
) -> Artifact:
    """Run the stages of a checked recipe, measure their files and write the artifact; see `vitslim.run`."""
    for backend in recipe.report.backends:
        parse_backend(backend).require()
    recipe, notes = resolve_reduce_range(on_first_rank(lambda: resolve_tables(recipe, progress, build=True)))
    for training in filter(None, (config.training for config in recipe.stages)):
        find_device(training)
    for folder in (out, *_snapshot_folders(recipe, out)):
        check_replaceable(folder)
    store = StageStore(out.with_name(f"{out.name}.stages"))
    with store.open(fresh):
        runner, key, lock = _prepared(recipe, store, progress, notes, locked)
        warnings += device_warnings(recipe)
        warnings += _say_all(accuracy_warnings(runner.recipe, runner.finished[0].record, runner.data.val), progress)
        data = runner.data.notes

        def finish(runner: StageRunner, folder: Path) -> Artifact:
            if rank() > 0:
                wait_for_ranks()
                return load_artifact(wait_for_file(folder / MANIFEST_FILE).parent)
            records = _measured(runner, runner.recipe, progress)
            report = _report(
                runner.recipe, records, _pictures(runner, runner.recipe), _environment(recipe), warnings, data
            )
            artifact = write_artifact(folder, runner.finished[-1].folder, lock, report, layout_files(runner))
            wait_for_ranks()
            return artifact

        return _run_stages(runner, 0, key, out, finish)


def _prepared(
    recipe: Recipe, store: StageStore, progress: Progress, notes: Mapping[int, LayerNote], locked: Locked | None
) -> tuple[StageRunner, str, str]:
    """Return a runner that has the dense model, the key of that model, and the text of the lock file.

    Raises RecipeError if the inputs differ from those of `locked`.
    """
    checkpoint = resolve_checkpoint(recipe)
    progress.say(f"{recipe.name}: tracing {recipe.model.name}")
    dense = trace_dense(recipe)
    for note in dense.source.weights:
        progress.say(f"model.checkpoint: {note}")
    recipe, task_problems, task_notes = resolve_task(recipe, dense.source)
    estimate_stages(recipe, sketch(dense), (*task_problems, *input_problems(recipe, dense)))
    recipe, order = resolve_class_order(recipe, dense, progress)
    data = _loaded(recipe, dense, progress)
    dense.source = replace(dense.source, class_rule=data.train.class_rule)
    for note in data.notes:
        progress.say(note)

    digests = input_digests(recipe, checkpoint, data.digest)
    inputs = Locked(versions=_environment(recipe).versions, digests=digests)
    if locked is not None and (found := locked.differences(inputs)):
        raise RecipeError(found, recipe.name)

    runner = StageRunner(recipe, data, store, progress, [], notes)
    key = dense_key(recipe, checkpoint, data.digest, environment().versions)
    runner.run_dense(dense, key, (*task_notes, *order))
    return runner, key, lock_text(recipe, inputs)


def _loaded(recipe: Recipe, dense: ModelGraph, progress: Progress) -> DataModule:
    """Return the data sets of a run, first on rank 0, whose check of the images the other ranks find in the cache."""
    if rank() > 0:
        wait_for_ranks()
    data = load_data(recipe.data, dense.source, recipe.seed, progress)
    if rank() == 0:
        wait_for_ranks()
    require_images(data, rank_count())
    return data


def require_images(data: DataModule, ranks: int) -> None:
    """Raise InputError for a data set with fewer images than ranks."""
    for found in (data.train, data.calibration, data.val, *data.extra.values()):
        if len(found) < ranks:
            message = f"{ranks} ranks cannot share the {len(found)} images of '{found.split}'"
            raise InputError(message, "start at most as many ranks as there are images")


def _environment(recipe: Recipe) -> Environment:
    """Return the environment of this machine, with the versions of the plugins that the recipe uses."""
    here = environment()
    plugins = {one.name: one.version for one in plugins_of(recipe.stages)}
    return here.model_copy(update={"versions": here.versions | plugins})


def _run_stages(
    runner: StageRunner, first: int, key: str, out: Path, finish: Callable[[StageRunner, Path], Artifact]
) -> Artifact:
    """Run the stages of a recipe from the position `first` on, then write the artifact to `out`.

    For each snapshot that a stage keeps, the stages after it run too, and write the artifact OUT-NAME.
    """
    for position, config in enumerate(runner.recipe.stages[first:], start=first):
        settings = approximation_of(runner.recipe, config.approximation) if config.approximation else None
        key = stage_key(key, config, settings)
        runner.run_stage(config, key, settings)
        for name in config.snapshot_names:
            branch = runner.at_snapshot(name, key)
            _run_stages(branch, position + 1, snapshot_key(key, name), snapshot_folder(out, name), finish)
    return finish(runner, out)


def snapshot_folder(out: Path, name: str) -> Path:
    """Return the folder of the artifact of a snapshot: OUT-NAME."""
    return out.with_name(f"{out.name}-{name}")


def _snapshot_folders(recipe: Recipe, out: Path) -> list[Path]:
    """Return the folders of all snapshots, also of those of later stages of a snapshot."""
    folders = [out]
    for config in recipe.stages:
        folders += [snapshot_folder(folder, name) for folder in folders for name in config.snapshot_names]
    return folders[1:]


def _say_all(warnings: tuple[str, ...], progress: Progress) -> tuple[str, ...]:
    """Show warnings when they arise, long before the report, and return them."""
    for warning in warnings:
        progress.say(f"warning: {warning}")
    return warnings


def _measured(runner: StageRunner, recipe: Recipe, progress: Progress) -> tuple[StageRecord, ...]:
    stages = runner.finished
    files = {stage.record.name: stage.onnx for stage in stages}
    simulators = [simulator for _, simulator in approximating(recipe)]
    accelerators, counts = accelerator_results(stages, simulators, runner.data, recipe.seed, progress)
    results = measure_files(files, stages[0].record.name, recipe.report, progress, counts)
    return tuple(
        stage.record.model_copy(
            update=dict(zip(("measurements", "estimates"), results[stage.record.name], strict=True))
            | {"accelerators": tuple(accelerators[stage.record.name])}
            | (_details(stage, recipe, progress) if stage in (stages[0], stages[-1]) else {})
        )
        for stage in stages
    )


def _details(stage: StoredStage, recipe: Recipe, progress: Progress) -> dict[str, Any]:
    """Return the operators of a file, if the recipe asks for them, and the kernels of its layers with 2:4 weights."""
    cost = stage.record.cost
    return {
        "profiles": operator_profiles(stage.onnx, recipe.report, progress) if recipe.report.profile else (),
        "two_four": two_four_uses(stage.onnx, recipe.report) if cost.device_bytes < cost.weight_bytes else (),
    }


def _pictures(runner: StageRunner, recipe: Recipe) -> tuple[TokenPicture, ...]:
    """Return pictures of the tokens of the final model; its graph is loaded only if a stage reduces tokens."""
    if all(config.phase is not Phase.TOKENS for config in recipe.stages):
        return ()
    return token_pictures(runner.finished[-1].graph, runner.data.val, recipe.seed)


def _report(
    recipe: Recipe,
    records: tuple[StageRecord, ...],
    pictures: tuple[TokenPicture, ...],
    here: Environment,
    warnings: tuple[str, ...],
    data: tuple[str, ...],
) -> Report:
    return Report(
        name=recipe.name,
        model=recipe.model.name,
        task=recipe.model.task or "classify",
        dataset=recipe.data.kind,
        seed=recipe.seed,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=here,
        stages=records,
        final_accuracies=records[-1].accuracies,
        parity={name: value for name, value in records[-1].metrics.items() if name.startswith("parity_")},
        gates=judge(recipe.gates, records),
        token_pictures=pictures,
        assumptions=assumptions(recipe),
        data=data,
        warnings=warnings + latency_regressions(records, recipe.stages) + noisy_speedups(records[-1]),
    )
