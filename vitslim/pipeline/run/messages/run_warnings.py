"""Warnings of a run: a dense model near chance, stages that increase latency, and speedups within the noise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from vitslim.data import Dataset
from vitslim.recipe.schema import Recipe
from vitslim.recipe.stage_config import StageConfig
from vitslim.results import StageRecord
from vitslim.units import format_percent

NEAR = 0.1
"""Fraction of the way from chance to 100 % below which top-1 is near chance."""
WIDE = 0.1
"""Width of an interval of a speedup above which the measurement does not decide."""


def latency_regressions(records: Sequence[StageRecord], stages: Sequence[StageConfig]) -> tuple[str, ...]:
    """Return a warning for each measured latency that a stage increased by more than the spread of both measurements.

    records: the dense model, then one for each of `stages`. Ends with the advice of the stage's config, if it has any.
    """
    warnings = []
    for (before, after), config in zip(pairwise(records), stages, strict=True):
        for old, new in zip(before.measurements, after.measurements, strict=True):
            if new.median_ms - new.spread_ms > old.median_ms + old.spread_ms:
                advice = f": {config.advice_if_slower}" if config.advice_if_slower else ""
                warnings.append(
                    f"{after.name} is slower than {before.name} on {new.backend} at batch {new.batch}, "
                    f"{new.threads} threads: {new.median_ms:.3g} ms after {old.median_ms:.3g} ms{advice}"
                )
    return tuple(warnings)


def noisy_speedups(final: StageRecord) -> tuple[str, ...]:
    """Return a warning for each speedup of the final model whose interval is wide and contains 1."""
    warnings = []
    for one in final.measurements:
        low, high = one.speedup_interval or (0.0, 0.0)
        if low <= 1 <= high and high - low > WIDE:
            warnings.append(
                f"this machine is too noisy to tell whether {final.name} is faster on {one.backend} at batch "
                f"{one.batch}, {one.threads} threads: the 95 % interval of its speedup is {low:.2f} to {high:.2f}"
            )
    return tuple(warnings)


def chance(dataset: Dataset) -> float:
    """Return the top-1 accuracy of the most common class for every image, in (0, 1]."""
    return max(Counter(dataset.labels).values()) / len(dataset)


def accuracy_warnings(recipe: Recipe, dense: StageRecord, val: Dataset) -> tuple[str, ...]:
    """Return a warning if the model of a checkpoint is near chance on `val`; random weights are expected to be."""
    found = next((one.metrics.get("top1") for one in dense.accuracies if one.dataset == "val"), None)
    if recipe.model.checkpoint is None or found is None or not val.is_labeled:
        return ()
    level = chance(val)
    if found >= level + NEAR * (1 - level):
        return ()
    return (
        f"top-1 of the dense model on val is {format_percent(found)}, and the most common class alone gives "
        f"{format_percent(level)}: probably the order of the classes (data.classes) or the preprocessing "
        "(model.preprocessing) is not that with which the checkpoint was trained",
    )
