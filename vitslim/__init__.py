"""vitslim: a compiler for vision transformers, from a YAML recipe to ONNX with a report.

The public verbs load on first use, so that importing vitslim does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from vitslim.version import __version__

if TYPE_CHECKING:
    from vitslim.pipeline.bench.files import bench
    from vitslim.pipeline.inspect.inspection import inspect
    from vitslim.pipeline.plan import build_plan
    from vitslim.pipeline.run.stored.artifact import load_artifact
    from vitslim.pipeline.run.verb import run
    from vitslim.recipe import load_recipe

__all__ = ["__version__", "bench", "build_plan", "inspect", "load_artifact", "load_recipe", "run"]


def __getattr__(name: str) -> Any:
    homes = {
        "load_recipe": "vitslim.recipe",
        "build_plan": "vitslim.pipeline.plan",
        "run": "vitslim.pipeline.run.verb",
        "bench": "vitslim.pipeline.bench.files",
        "inspect": "vitslim.pipeline.inspect.inspection",
        "load_artifact": "vitslim.pipeline.run.stored.artifact",
    }
    if name not in homes:
        raise AttributeError(f"module 'vitslim' has no attribute '{name}'")
    return getattr(import_module(homes[name]), name)
