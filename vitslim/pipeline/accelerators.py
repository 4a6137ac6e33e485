"""Backends that change results: the checks of their settings against a recipe and its model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vitslim.backends.registry import Simulated, parse_backend
from vitslim.backends.simulated.simulator import ApproximatingSimulator
from vitslim.errors import Problem
from vitslim.recipe.accelerators import Accelerator, AcceleratorName, SpattenSettings
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stage_config import Phase
from vitslim.recipe.stages import Distill

if TYPE_CHECKING:
    from vitslim.graph.model_graph import ModelGraph
    from vitslim.graph.sketch import ModelSketch


def approximating(recipe: Recipe) -> Iterator[tuple[int, ApproximatingSimulator]]:
    """Yield the backends of a recipe that change results, with their positions in `report.backends`.

    Raises UsageError for a backend that does not exist or has invalid settings.
    """
    for position, value in enumerate(recipe.report.backends):
        backend = parse_backend(value)
        if isinstance(backend, Simulated) and isinstance(backend.simulator, ApproximatingSimulator):
            yield position, backend.simulator


def approximation_of(recipe: Recipe, name: AcceleratorName) -> Accelerator:
    """Return the settings of the accelerator that a stage trains for. Raises KeyError unless the recipe lists it."""
    return {one.approximation.name: one.approximation for _, one in approximating(recipe)}[name]


def accelerator_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield problems between accelerators and stages that the text of a recipe decides."""
    found = list(approximating(recipe))
    for position, simulator in found:
        yield from _stage_problems(recipe, simulator.approximation, f"report.backends.{position}")
    for position, config in enumerate(recipe.stages):
        if isinstance(config, Distill) and config.approximate is not None:
            where = f"stages.{position}.distill.approximate"
            settings = [one.approximation for _, one in found if one.approximation.name == config.approximate]
            yield from _training_problems(recipe, position, settings, config.approximate, where)


def _stage_problems(recipe: Recipe, settings: Accelerator, where: str) -> Iterator[Problem]:
    if not isinstance(settings, SpattenSettings):
        return
    if settings.token.is_active and any(config.phase is Phase.TOKENS for config in recipe.stages):
        message = "cascade token pruning cannot follow `token-squeeze`, which already removes tokens"
        yield Problem(f"{where}.token.pruning_ratio", message, "set it to 0, or remove the `token-squeeze` stage")
    for stage in (config for config in recipe.stages if config.ranks_head_widths):
        message = f"SpAtten stores Q and V of a head with one width, and `prune: {stage.method}` may make them differ"
        yield Problem(where, message, "remove this backend, or do not prune the axes `qk` and `v`")
    if settings.head.is_active and any(config.phase is Phase.STRUCTURE for config in recipe.stages):
        message = "cascade head pruning needs the same heads in all blocks, which structural pruning may change"
        yield Problem(f"{where}.head.pruning_ratio", message, "set it to 0, or remove the `prune` stage")


def _training_problems(
    recipe: Recipe, position: int, settings: list[Accelerator], name: str, where: str
) -> Iterator[Problem]:
    if not settings:
        message = f"no backend of the report has the approximations of {name}"
        yield Problem(where, message, f"add {{sim: {name}}} with its settings to report.backends")
    elif any(one != settings[0] for one in settings):
        message = f"report.backends has {name} with different approximations"
        yield Problem(where, message, "give all of them the same approximations")
    if any(config.inserts_predictors for config in recipe.stages[:position]):
        message = "token predictors are trained in a form that no accelerator computes"
        yield Problem(where, message, "use a token method without predictors, such as etps")


def width_problems(recipe: Recipe, planned: ModelSketch) -> Iterator[Problem]:
    """Yield a problem for each backend that cannot store the heads that the stages of a recipe leave."""
    differing = next(
        ((block, *widths) for block, widths in _head_widths(planned).items() if len(set(widths)) > 1), None
    )
    for position, simulator in approximating(recipe):
        if differing and isinstance(simulator.approximation, SpattenSettings):
            block, qk, v = differing
            message = f"SpAtten stores Q and V of a head with one width, and '{block}' will have {qk} and {v} columns"
            yield Problem(f"report.backends.{position}", message, "prune the axes `qk` and `v` to the same width")


def _head_widths(planned: ModelSketch) -> dict[str, tuple[int, int]]:
    """Return the columns of Q and K, and those of V, of a head of each block."""
    from vitslim.graph.sketch.matmul import SCORES, VALUES

    scores = {one.block: one.reduce for one in planned.matmuls if one.name.endswith(SCORES)}
    values = {one.block: one.columns for one in planned.matmuls if one.name.endswith(VALUES)}
    return {block: (scores[block].value(planned.axes), values[block].value(planned.axes))
            for block in scores.keys() & values.keys()}  # fmt: skip


def model_problems(recipe: Recipe, graph: ModelGraph) -> tuple[Problem, ...]:
    """Return a problem for each accelerator of the report that cannot compute the model of a recipe."""
    found = list(approximating(recipe))
    if not found:
        return ()
    from vitslim.graph.approximate import approximation_obstacle

    task = graph.source.task
    reasons = {
        position: approximation_obstacle(graph, one.approximation)
        if task == "classify"
        else f"its results are compared by top-1, and the task of the model is {task}"
        for position, one in found
    }
    return tuple(
        Problem(
            f"report.backends.{position}",
            f"{simulator.name} cannot compute {graph.source.timm}: {reasons[position]}",
            "remove this backend, or choose another model",
        )
        for position, simulator in found
        if reasons[position]
    )
