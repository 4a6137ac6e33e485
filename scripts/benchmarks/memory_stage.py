"""Run one stage on a timm model with random weights, and print its peak memory and seconds as JSON."""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from pathlib import Path

from vitslim.cli.console_progress import ConsoleProgress

from vitslim.data import load_data
from vitslim.graph.trace import trace_timm
from vitslim.recipe import validate
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.registry import make_stage

GIB = 2**30


def peak_bytes() -> int:
    """Peak resident memory of this process."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else 1024 * size


def main(model: str, stage: str, images: int) -> None:
    """Apply a stage, as a recipe writes it in JSON, to a model; progress goes to stderr."""
    data = {"kind": "digits", "calibration": images}
    recipe = validate({"name": "memory", "model": {"timm": model}, "data": data, "stages": [json.loads(stage)]})
    graph, progress = trace_timm(model, {}), ConsoleProgress()
    sets = load_data(recipe.data, graph.source, recipe.seed, progress)
    weights, before = sum(one.nbytes for one in graph.parameters().values()), peak_bytes()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        context = StageContext(sets, recipe.seed, progress, lambda _: StageResult(graph), Path(folder))
        make_stage(recipe.stages[0]).apply(graph, context)
    found = {"weights_gib": weights / GIB, "before_gib": before / GIB, "peak_gib": peak_bytes() / GIB}
    print(json.dumps(found | {"seconds": time.monotonic() - started}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
