"""Run one job of the benchmark `time` in a process of its own: JOB is its JSON, OUT the folder for its files.

Prints a JSON object: seconds of each phase, of the stages, and of the tool.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from vitslim.progress import Silent

T = TypeVar("T")


class PhaseTimes(Silent):
    """Progress that adds up the seconds of each loop by its label, and of what happens between loops."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def track(self, items: Iterable[T], label: str, total: int | None = None, images: int = 0) -> Iterator[T]:  # noqa: ARG002
        """Yield the items, and add the seconds until the last one was used."""
        start = perf_counter()
        yield from items
        self.seconds[label] = self.seconds.get(label, 0.0) + perf_counter() - start

    def say(self, message: str) -> None:
        """Show a message."""
        print(f"  {message}", file=sys.stderr, flush=True)


def run_recipe(document: dict[str, Any], out: Path, candidates: int) -> dict[str, Any]:
    """Return the seconds of the phases and of the stages of a run, and its work.

    candidates: as in Job. The work is the number of candidates of the placement search if that is given, otherwise the
    MACs of all calibration images together.
    """
    import vitslim
    from vitslim.recipe import validate
    from vitslim.stages.quantize.placement import choose

    if candidates:
        choose.CANDIDATES_MAX = candidates
    progress = PhaseTimes()
    report = vitslim.run(validate(document, "time"), out, fresh=True, progress=progress).report
    stages = {stage.name: stage.seconds for stage in report.stages}
    final = {found.dataset: found.metrics for found in report.final_accuracies}
    written = sum(note.layer.startswith("placement: ") for stage in report.stages for note in stage.changes)
    work = written if candidates else report.stages[0].cost.macs * document["data"]["calibration"]
    return {"phases": progress.seconds, "stages": stages, "work": work, "final": final}


def run_tool(tool: str, timm: str, dense: Path, out: Path) -> dict[str, Any]:
    """Return the seconds of another tool, without imports and without reading the images."""
    from duration_jobs import PRUNER, QUANTIZERS
    from paths import SHARED

    from vitslim.data import load_data
    from vitslim.graph.trace import load_timm
    from vitslim.recipe.schema import Data

    out.mkdir(parents=True, exist_ok=True)
    if tool == PRUNER:
        return _timed(lambda: _prune(timm))
    from other_quantizers import nncf_quantize, ort_dynamic, ort_static

    config = Data(kind="imagefolder", root=str(SHARED / "imagenette"), calibration=256)
    data = load_data(config, load_timm(timm, {})[1], 0)
    data.calibration.stacked()
    calls: dict[str, Callable[[], None]] = dict(zip(QUANTIZERS, (
        lambda: ort_static(dense, out / "static.onnx", data, {"per_channel": True}, None),
        lambda: ort_dynamic(dense, out / "dynamic.onnx"),
        lambda: nncf_quantize(dense, out / "nncf.onnx", data),
    ), strict=True))  # fmt: skip
    return _timed(calls[tool])


def _prune(timm: str) -> None:
    import timm as models
    import torch
    import torch_pruning
    from torch_pruning_model import pruner_of, write_back

    net = models.create_model(timm).eval()
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    pruner = pruner_of(net, torch.randn(1, 3, 224, 224), importance, 0.5, 16)
    pruner.step()
    write_back(pruner)


def _timed(call: Callable[[], None]) -> dict[str, Any]:
    start = perf_counter()
    call()
    return {"tool_seconds": perf_counter() - start}


if __name__ == "__main__":
    job, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    if job["recipe"] is not None:
        result = run_recipe(job["recipe"], folder, job["candidates"])
    else:
        result = run_tool(job["tool"], job["timm"], Path(job["dense"]), folder)
    print(json.dumps(result))
