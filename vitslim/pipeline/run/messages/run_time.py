"""The expected duration of a run, said at its start, and its error, said at its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from vitslim.data import DataModule
from vitslim.pipeline.duration.counts import loaded_counts
from vitslim.pipeline.duration.estimate import describe_durations, measuring_seconds, stage_seconds
from vitslim.pipeline.duration.probe import probe
from vitslim.pipeline.run.stored.keys import RunKey
from vitslim.pipeline.run.stored.store import StageStore
from vitslim.progress import Progress, Silent
from vitslim.recipe.schema import Recipe
from vitslim.results import PlanRow, StageRecord
from vitslim.units import format_duration


@dataclass(frozen=True)
class ExpectedTime:
    """Seconds of the stages that are not finished yet, by name, and of the whole run."""

    stages: dict[str, float]
    total: float


def expected_time(
    recipe: Recipe, rows: Sequence[PlanRow], data: DataModule, store: StageStore, keys: Sequence[RunKey],
    trace_seconds: float, progress: Progress,
) -> ExpectedTime | None:  # fmt: skip
    """Measure the rates of this machine, and say how long the run will take.

    rows: of the plan. keys: of the dense model and of each stage. trace_seconds: those in which the model was traced.
    Returns None, and measures nothing, if all stages are finished, and for progress that nobody sees.
    """
    missing = [store.find(*key) is None for key in keys]
    macs = [row.cost.macs for row in rows if row.cost is not None]
    if not any(missing) or isinstance(progress, Silent):
        return None
    found = stage_seconds(recipe, macs, loaded_counts(data), probe(), trace_seconds)
    stages = {key.name: seconds for key, seconds, is_missing in zip(keys, found, missing, strict=True) if is_missing}
    expected = ExpectedTime(stages, sum(stages.values()) + measuring_seconds(recipe))
    progress.say(describe_durations(stages, expected.total))
    return expected


def say_duration(
    expected: ExpectedTime | None, started: float, records: Sequence[StageRecord], progress: Progress
) -> None:
    """Say how long a run took, the error of the estimate, and the stage that differs most from it.

    started: in seconds of `time.monotonic`.
    """
    seconds = time.monotonic() - started
    if expected is None:
        progress.say(f"took {format_duration(seconds)}")
        return
    taken = {record.name: record.seconds for record in records if record.name in expected.stages}
    text = f"took {format_duration(seconds)}, {100 * (seconds / expected.total - 1):+.0f} % from the estimate"
    if taken:
        name = max(taken, key=lambda one: abs(taken[one] - expected.stages[one]))
        text += f"; {name} took {format_duration(taken[name])}, estimated ~{format_duration(expected.stages[name])}"
    progress.say(text)
