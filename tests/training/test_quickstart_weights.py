from __future__ import annotations

from pathlib import Path

from vitslim.data import load_data
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.recipe.schema import Data
from vitslim.training import predict, top1

WEIGHTS = Path(__file__).parents[2] / "recipes" / "quickstart.safetensors"
KWARGS = {"img_size": 32, "patch_size": 4, "in_chans": 1, "depth": 4, "num_classes": 10}


def test_shipped_weights_are_small_and_accurate() -> None:
    assert WEIGHTS.stat().st_size < 4_000_000
    graph = trace_timm("vit_tiny_patch16_224", KWARGS, WEIGHTS)
    val = load_data(Data(kind="digits"), graph.source, 0).val
    assert top1(*predict(graph.module, val, 60, Silent(), "")) >= 0.975
