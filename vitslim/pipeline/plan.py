"""The plan: the stages of a recipe with the estimated cost of the model after each, before anything runs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from vitslim.errors import Problem, RecipeError
from vitslim.pipeline.check import check_recipe
from vitslim.pipeline.model_task import resolve_task
from vitslim.pipeline.problems.data_problems import data_problems, list_images
from vitslim.pipeline.problems.teacher_problems import teacher_problems
from vitslim.pipeline.table_file import cost_targets, stage_table, table_problems, table_warnings
from vitslim.progress import Silent
from vitslim.recipe.schema import Recipe
from vitslim.results import Plan, PlanRow

if TYPE_CHECKING:
    from vitslim.data.files.image_list import ImageList
    from vitslim.graph.model_graph import ModelGraph
    from vitslim.graph.sketch import ModelSketch


def build_plan(recipe: Recipe, trace: bool = True, durations: bool = False) -> Plan:
    """Check the order of the stages and, with `trace`, estimate the model after each of them.

    With `durations` also estimate how long the stages take on this machine, whose rates are measured for two seconds.

    Tracing builds the timm model and its teachers, reads their checkpoints, and lists the images of `data.root`, where
    the recipe has them. Nothing is written. Raises RecipeError with every problem found, InputError for a checkpoint, a
    latency table or an image folder that cannot be read.
    """
    warnings = check_recipe(recipe)
    if trace and any(target.backend for _, target in cost_targets(recipe.stages)):
        from vitslim.pipeline.bench.table_cache import resolve_tables

        recipe = resolve_tables(recipe, Silent(), build=False)
    warnings += device_warnings(recipe) if trace else ()
    started = time.monotonic()
    rows = _traced_rows(recipe) if trace else _plain_rows(recipe)
    trace_seconds = time.monotonic() - started
    plan = Plan(name=recipe.name, model=recipe.model.name, rows=tuple(rows), warnings=warnings)
    if not (trace and durations):
        return plan
    from vitslim.pipeline.duration.planned import with_durations

    return with_durations(plan, recipe, trace_seconds)


def device_warnings(recipe: Recipe) -> tuple[str, ...]:
    """Return a warning for each latency table that was measured on another device.

    Raises InputError for a table that cannot be read.
    """
    from vitslim.backends.environment import device_name

    tables = [(stage_table(config, position), config, position) for position, config in enumerate(recipe.stages)]
    return tuple(text for found in tables if found[0] for text in table_warnings(*found, device_name()))


def _plain_rows(recipe: Recipe) -> list[PlanRow]:
    rows = [PlanRow(kind=config.kind, method=config.method) for config in recipe.stages]
    return [PlanRow(kind="dense", method=""), *rows]


def _traced_rows(recipe: Recipe) -> list[PlanRow]:
    from vitslim.graph.sketch import sketch
    from vitslim.pipeline.dense_model import trace_dense

    graph = trace_dense(recipe)
    recipe, task_problems, _ = resolve_task(recipe, graph.source)
    listed = list_images(recipe.data, Silent())
    return estimate_stages(recipe, sketch(graph), (*task_problems, *input_problems(recipe, graph, listed)))


def input_problems(recipe: Recipe, graph: ModelGraph, listed: Mapping[str, ImageList]) -> tuple[Problem, ...]:
    """Return the problems of the model, the teachers and the data with the rest of the recipe.

    listed: the images of `data.root` by split.
    """
    from vitslim.pipeline.accelerators import model_problems
    from vitslim.pipeline.problems.layout_problems import layout_problems

    return (
        *model_problems(recipe, graph),
        *layout_problems(recipe, graph),
        *teacher_problems(recipe, graph.source),
        *data_problems(recipe, listed),
    )


def estimate_stages(recipe: Recipe, dense: ModelSketch, further: Sequence[Problem] = ()) -> list[PlanRow]:
    """Check the requirements of every stage on the sketch of the model before it, and estimate the model after it.

    Raises RecipeError with the problems of all stages and the `further` ones, InputError for a latency table that
    cannot be read.
    """
    from vitslim.pipeline.accelerators import width_problems
    from vitslim.pipeline.bit_latency import gemm_latency
    from vitslim.stages.registry import make_stage

    sketch, rows = dense, [PlanRow(kind="dense", method="", cost=dense.cost())]
    problems = list(further)
    for position, config in enumerate(recipe.stages):
        table = stage_table(config, position)
        stage = make_stage(config, table, gemm_latency(config))
        found = table_problems(table, recipe.model, config, position)
        if not found:
            found = [_in_recipe(problem, position, config.kind) for problem in stage.requires(sketch)]
        problems += found
        if not found:
            sketch = stage.estimate(sketch)
        row = PlanRow(kind=config.kind, method=config.method, cost=sketch.cost(), approximate=sketch.data_dependent)
        rows.append(row)
    problems = problems or list(width_problems(recipe, sketch))
    if problems:
        raise RecipeError(problems, recipe.name)
    return rows


def _in_recipe(problem: Problem, position: int, kind: str) -> Problem:
    where = f"stages.{position}.{kind}"
    return Problem(f"{where}.{problem.where}" if problem.where else where, problem.message, problem.hint)
