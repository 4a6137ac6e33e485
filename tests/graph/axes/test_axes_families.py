"""Axis inference on timm families other than plain ViT: no unknown operator, all axes named and verified."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from vitslim.graph.coverage import prunable_share
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.graph.verify import verify_axes
from vitslim.recipe.stages import DepGraph
from vitslim.stages.prune.depgraph.schedule import choose_cuts

HALVE = DepGraph(method="depgraph", pruning_ratio=0.5, round_to=1)

FAST: dict[str, dict[str, Any]] = {
    "vit_small_patch16_rope_224": {"depth": 1},
    "cait_xxs24_224": {"depth": 1},
    "xcit_nano_12_p16_224": {"depth": 1},
    "tnt_s_patch16_224": {"depth": 1},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1)},
    "convnext_atto": {"depths": (1, 1, 1, 1)},
    "resnet18": {},
    "test_efficientnet": {},
    "test_byobnet": {},
    "test_nfnet": {},
    "test_mambaout": {},
    "mobilenetv3_small_050": {},
}
SLOW = (
    "sequencer2d_s", "mvitv2_tiny", "volo_d1_224", "hiera_tiny_224", "gcvit_xxtiny", "halonet_h1", "lowformer_b0",
    "efficientvit_m0", "swinv2_tiny_window8_256", "maxvit_tiny_rw_224", "coat_tiny", "eva02_tiny_patch14_224",
    "levit_128s", "edgenext_xx_small",
)  # fmt: skip


NAMES: dict[str, set[str]] = {
    "swin_tiny_patch4_window7_224": {"layers.0.embed", "layers.2.blocks.0.heads", "layers.2.blocks.0.mlp"},
    "cait_xxs24_224": {"embed", "blocks.0.qk", "blocks.0.attn.heads", "blocks.0.attn.heads.2", "blocks_token_only.1.v"},
    "tnt_s_patch16_224": {
        "blocks.0.attn_in.qk",
        "blocks.0.attn_out.v",
        "blocks.0.mlp_in.mlp",
        "blocks.0.attn_in.heads",
    },
    "xcit_nano_12_p16_224": {"embed", "blocks.0.heads", "blocks.0.qk", "blocks.0.v", "cls_attn_blocks.0.mlp"},
    "convnext_atto": {"stages.3.embed", "stages.2.blocks.0.mlp"},
    "levit_128s": {"stages.0.blocks.1.heads", "stages.0.blocks.1.mlp", "stages.1.qk"},
}
"""Names that contain the kind of an axis, of some families."""


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [*FAST.items(), *(pytest.param(name, {}, id=name, marks=pytest.mark.slow) for name in SLOW)],
)
def test_every_family_has_known_operators_and_can_be_halved(name: str, kwargs: dict[str, Any]) -> None:
    graph = trace_timm(name, kwargs)
    assert graph.axes.unknown_ops == {}
    assert verify_axes(graph).holds
    assert prunable_share(graph) > 0.95
    keep = choose_cuts(sketch(graph), HALVE).keep
    halved = slice_axes(graph, {axis: range(count) for axis, count in keep.items()})
    kept = sum(w.numel() for w in halved.parameters().values()) / sum(w.numel() for w in graph.parameters().values())
    assert 0.2 < kept < 0.6
    assert halved.module(torch.randn(2, *graph.source.image)).isfinite().all()
    names = [axis.name for axis in graph.axes.axes]
    assert len(set(names)) == len(names)
    assert NAMES.get(name, set()) <= {axis.name for axis in graph.axes.prunable}
    assert {axis.name: axis.size for axis in halved.axes.prunable} == {
        axis.name: keep.get(axis.name, axis.size) for axis in graph.axes.prunable if keep.get(axis.name, axis.size) > 1
    }
