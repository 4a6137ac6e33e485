"""Checks that need only the text of a recipe. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from vitslim.errors import Problem, RecipeError, UsageError
from vitslim.recipe import check_order
from vitslim.recipe.backend_names import known_backends, may_approximate
from vitslim.recipe.schema import Recipe


def check_recipe(recipe: Recipe) -> tuple[str, ...]:
    """Return the warnings of a recipe whose values are valid.

    Raises RecipeError with every problem of the order of stages, of their keys and of the backends; InputError for a
    settings file of a simulated backend that cannot be read.
    """
    errors, warnings = check_order(recipe)
    errors = errors or list(_missing_packages(recipe))
    errors = errors or list(_setting_problems(recipe)) or list(_accelerator_problems(recipe))
    if errors:
        raise RecipeError(errors, recipe.name)
    return tuple(warning.message for warning in warnings)


def _missing_packages(recipe: Recipe) -> Iterator[Problem]:
    """Yield a problem if the kind of the data needs a package that is not installed."""
    if recipe.data.kind == "huggingface" and find_spec("datasets") is None:
        message = "`kind: huggingface` needs the package `datasets`, which is not installed"
        yield Problem("data.kind", message, "install it: pip install 'vitslim[datasets]'")


def _setting_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield problems in the settings of simulated backends, which only their simulators can check."""
    with_settings = {i: b for i, b in enumerate(recipe.report.backends) if b not in known_backends()}
    for position, backend in with_settings.items():
        from vitslim.backends.registry import parse_backend

        try:
            parse_backend(backend)
        except UsageError as error:
            yield Problem(f"report.backends.{position}", str(error), error.hint)


def _accelerator_problems(recipe: Recipe) -> Iterator[Problem]:
    """Yield problems between stages and backends that change results; only then are the backends read."""
    trained = any(config.approximation for config in recipe.stages)
    if trained or any(may_approximate(backend) for backend in recipe.report.backends):
        from vitslim.pipeline.accelerators import accelerator_problems

        yield from accelerator_problems(recipe)
