"""From a checked recipe to an artifact: trace, run each stage, measure, report."""

from __future__ import annotations

import time
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
from vitslim.graph.sketch import sketch
from vitslim.pipeline.accelerators import approximating, approximation_of
from vitslim.pipeline.bench.table_cache import resolve_tables
from vitslim.pipeline.dense_model import trace_dense
from vitslim.pipeline.file_details import operator_profiles, two_four_uses
from vitslim.pipeline.latency import measure_files
from vitslim.pipeline.model_task import resolve_task
from vitslim.pipeline.plan import device_warnings, estimate_stages, input_problems
from vitslim.pipeline.problems.data_problems import list_images
from vitslim.pipeline.run.accelerator_runs import accelerator_results
from vitslim.pipeline.run.arrangement import layout_files
from vitslim.pipeline.run.class_order import resolve_class_order
from vitslim.pipeline.run.exhaustion import explained
from vitslim.pipeline.run.gates import judge
from vitslim.pipeline.run.messages.run_events import run_finished, run_started, stage_events
from vitslim.pipeline.run.messages.run_time import ExpectedTime, expected_time, say_duration
from vitslim.pipeline.run.messages.run_warnings import accuracy_warnings, latency_regressions, noisy_speedups
from vitslim.pipeline.run.resolve import resolve_reduce_range
from vitslim.pipeline.run.stage_run import DENSE, StageRunner, stage_name
from vitslim.pipeline.run.stored.artifact import Artifact, check_replaceable, load_artifact, write_artifact
from vitslim.pipeline.run.stored.keys import RunKey, dense_key, input_digests, snapshot_key, stage_key
from vitslim.pipeline.run.stored.store import StageStore, StoredStage, wait_for_file
from vitslim.pipeline.run.token_pictures import token_pictures
from vitslim.pipeline.run_folders import stages_folder
from vitslim.progress import Progress
from vitslim.ranks import rank, rank_count
from vitslim.recipe import Locked, assumptions, lock_text, resolve_checkpoint
from vitslim.recipe.accelerators import Accelerator
from vitslim.recipe.plugins import plugins_of
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stage_config import Phase, StageConfig
from vitslim.results import Environment, LayerNote, Report, StageRecord, TokenPicture
from vitslim.training.device import find_device
from vitslim.training.engine.collectives import first_rank_first, on_first_rank, wait_for_ranks


def execute(
    recipe: Recipe, out: Path, fresh: bool, progress: Progress, warnings: tuple[str, ...], locked: Locked | None
) -> Artifact:
    """Run the stages of a checked recipe, measure their files and write the artifact; see `vitslim.run`."""
    started = time.monotonic()
    for backend in recipe.report.backends:
        parse_backend(backend).require()
    recipe, notes = resolve_reduce_range(on_first_rank(lambda: resolve_tables(recipe, progress, build=True)))
    for training in filter(None, (config.training for config in recipe.stages)):
        find_device(training)
    for folder in (out, *_snapshot_folders(recipe, out)):
        check_replaceable(folder)
    run_started(progress, recipe)
    store = StageStore(stages_folder(out))
    with store.open(fresh), explained(store.folder):
        runner, key, lock, expected = _prepared(recipe, store, progress, notes, locked)
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
            run_finished(progress, artifact)
            wait_for_ranks()
            return artifact

        artifact = _run_stages(runner, 0, key, out, finish)
        say_duration(expected, started, artifact.report.stages, progress)
        return artifact


def _prepared(
    recipe: Recipe, store: StageStore, progress: Progress, notes: Mapping[int, LayerNote], locked: Locked | None
) -> tuple[StageRunner, str, str, ExpectedTime | None]:
    """Return a runner that has the dense model, the key of that model, the text of the lock file, and its duration.

    Raises RecipeError if the inputs differ from those of `locked`.
    """
    checkpoint = resolve_checkpoint(recipe)
    progress.say(f"{recipe.name}: tracing {recipe.model.name}")
    started = time.monotonic()
    dense = trace_dense(recipe)
    trace_seconds = time.monotonic() - started
    for note in dense.source.weights:
        progress.say(f"model.checkpoint: {note}")
    recipe, task_problems, task_notes = resolve_task(recipe, dense.source)
    with first_rank_first():  # the other ranks find its check of the images in the cache
        listed = list_images(recipe.data, progress)
    rows = estimate_stages(recipe, sketch(dense), (*task_problems, *input_problems(recipe, dense, listed)))
    recipe, order = resolve_class_order(recipe, dense, listed, progress)
    with first_rank_first():
        data = load_data(recipe.data, dense.source, recipe.seed, progress, listed or None)
    require_images(data, rank_count())
    dense.source = replace(dense.source, class_rule=data.train.class_rule)
    for note in data.notes:
        progress.say(note)

    digests = input_digests(recipe, checkpoint, data.digest)
    inputs = Locked(versions=_environment(recipe).versions, digests=digests)
    if locked is not None and (found := locked.differences(inputs)):
        raise RecipeError(found, recipe.name)

    runner = StageRunner(recipe, data, store, progress, [], notes)
    key = dense_key(recipe, checkpoint, data.digest, environment().versions)
    expected = expected_time(recipe, rows, data, store, run_keys(recipe, key), trace_seconds, progress)
    with stage_events(progress, DENSE, "dense", "", lambda: runner.finished[-1].record):
        runner.run_dense(dense, key, (*task_notes, *order))
    return runner, key, lock_text(recipe, inputs), expected


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
        settings = _accelerator(runner.recipe, config)
        key = stage_key(key, config, settings)
        name = stage_name(len(runner.finished), config)
        with stage_events(runner.progress, name, config.kind, config.method, lambda: runner.finished[-1].record):
            runner.run_stage(config, key, settings)
        for name in config.snapshot_names:
            branch = runner.at_snapshot(name, key)
            _run_stages(branch, position + 1, snapshot_key(key, name), snapshot_folder(out, name), finish)
    return finish(runner, out)


def _accelerator(recipe: Recipe, config: StageConfig) -> Accelerator | None:
    """Return the approximations under which a stage trains."""
    return approximation_of(recipe, config.approximation) if config.approximation else None


def run_keys(recipe: Recipe, dense: str) -> list[RunKey]:
    """Return the names and the content keys of the dense model, whose key is given, and of all stages."""
    found = [RunKey(DENSE, dense)]
    for position, config in enumerate(recipe.stages, start=1):
        key = stage_key(found[-1].key, config, _accelerator(recipe, config))
        found.append(RunKey(stage_name(position, config), key))
    return found


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
        progress.warn(warning)
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
        model_kwargs=recipe.model.kwargs,
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
