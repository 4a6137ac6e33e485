"""The plan: the stages of a recipe with what the model will cost after each, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitslim.errors import Problem, RecipeError, UsageError
from vitslim.pipeline.table_file import stage_table, table_problems
from vitslim.recipe import check_order
from vitslim.recipe.backend_names import BACKENDS
from vitslim.recipe.schema import Recipe
from vitslim.results import Plan, PlanRow

if TYPE_CHECKING:
    from vitslim.graph.sketch import ModelSketch


def build_plan(recipe: Recipe, trace: bool = True) -> Plan:
    """Check the order of the stages and, with `trace`, estimate the model after each of them.

    Tracing builds the timm model with random weights; nothing but latency tables is read from disk, nothing written.
    Raises RecipeError with every problem found, InputError for a latency table that cannot be read.
    """
    errors, warnings = check_order(recipe)
    errors = errors or list(backend_problems(recipe))
    if errors:
        raise RecipeError(errors, recipe.name)
    rows = _traced_rows(recipe) if trace else _plain_rows(recipe)
    return Plan(
        name=recipe.name, model=recipe.model.timm, rows=tuple(rows), warnings=tuple(w.message for w in warnings)
    )


def backend_problems(recipe: Recipe) -> Iterator[Problem]:
    """What is wrong with the settings of simulated backends, which only their simulators know.

    Raises InputError for a settings file that cannot be read.
    """
    with_settings = {i: b for i, b in enumerate(recipe.report.backends) if b not in BACKENDS}
    for position, backend in with_settings.items():
        from vitslim.backends.registry import parse_backend

        try:
            parse_backend(backend)
        except UsageError as error:
            yield Problem(f"report.backends.{position}", str(error), error.hint)


def _plain_rows(recipe: Recipe) -> list[PlanRow]:
    rows = [PlanRow(kind=config.kind, method=config.method) for config in recipe.stages]
    return [PlanRow(kind="dense", method=""), *rows]


def _traced_rows(recipe: Recipe) -> list[PlanRow]:
    from vitslim.graph.sketch_graph import sketch
    from vitslim.graph.trace import trace_timm

    graph = trace_timm(recipe.model.timm, dict(recipe.model.kwargs), seed=recipe.seed)
    return estimate_stages(recipe, sketch(graph))


def estimate_stages(recipe: Recipe, dense: ModelSketch) -> list[PlanRow]:
    """Ask every stage whether the model before it has what it needs, and what it will make of it.

    Raises RecipeError with the problems of all stages, InputError for a latency table that cannot be read.
    """
    from vitslim.stages.registry import make_stage

    sketch, rows = dense, [PlanRow(kind="dense", method="", cost=dense.cost())]
    problems: list[Problem] = []
    for position, config in enumerate(recipe.stages):
        table = stage_table(config, position)
        stage = make_stage(config, table)
        found = table_problems(table, recipe.model, config, position)
        if not found:
            found = [_in_recipe(problem, position, config.kind) for problem in stage.requires(sketch)]
        problems += found
        if not found:
            sketch = stage.estimate(sketch)
        row = PlanRow(kind=config.kind, method=config.method, cost=sketch.cost(), approximate=sketch.data_dependent)
        rows.append(row)
    if problems:
        raise RecipeError(problems, recipe.name)
    return rows


def _in_recipe(problem: Problem, position: int, kind: str) -> Problem:
    where = f"stages.{position}.{kind}"
    return Problem(f"{where}.{problem.where}" if problem.where else where, problem.message, problem.hint)
