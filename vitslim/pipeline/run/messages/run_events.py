"""Events of a run for programs: the run, its stages and their results, gates and artifacts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from vitslim.progress import STAGE_ENDED, STAGE_STARTED, Progress
from vitslim.recipe.schema import Recipe
from vitslim.results import StageRecord
from vitslim.version import __version__

if TYPE_CHECKING:
    from vitslim.pipeline.run.stored.artifact import Artifact


def run_started(progress: Progress, recipe: Recipe) -> None:
    """Emit `run_started`, before the stages."""
    stages = [{"kind": config.kind, "method": config.method} for config in recipe.stages]
    values = {"recipe": recipe.name, "model": recipe.model.name, "seed": recipe.seed, "stages": stages}
    progress.emit("run_started", {"version": __version__, **values})


@contextmanager
def stage_events(
    progress: Progress, name: str, kind: str, method: str, record: Callable[[], StageRecord]
) -> Iterator[None]:
    """Emit `stage_started`, and `stage_ended` with the result unless the stage fails; `record` returns the result."""
    progress.emit(STAGE_STARTED, {"stage": name, "kind": kind, "method": method})
    yield
    found = record()
    progress.emit(
        STAGE_ENDED,
        {
            "stage": found.name,
            "reused": found.cached,
            "seconds": found.seconds,
            "onnx_bytes": found.onnx_bytes,
            "cost": found.cost.model_dump(mode="json"),
            "accuracies": [one.model_dump(mode="json") for one in found.accuracies],
            "metrics": dict(found.metrics),
        },
    )


def run_finished(progress: Progress, artifact: Artifact) -> None:
    """Emit `gate` for each gate of an artifact, and `result` with all warnings of the report."""
    for gate in artifact.report.gates:
        progress.emit("gate", gate.model_dump())
    failed = sum(not gate.passed for gate in artifact.report.gates)
    warnings = list(artifact.report.warnings)
    progress.emit("result", {"folder": str(artifact.folder), "gates_failed": failed, "warnings": warnings})
