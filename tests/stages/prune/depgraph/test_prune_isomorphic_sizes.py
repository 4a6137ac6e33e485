"""Isomorphic pruning (Fang et al., ECCV 2024): heads, head dims, hidden units and embedding have own ratios."""

from __future__ import annotations

import pytest
import torch

from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.recipe.stages import DepGraph, PruningRatios
from vitslim.stages.prune.depgraph.cutting import rank_lists
from vitslim.stages.prune.depgraph.ranking import ranked_schedule
from vitslim.stages.prune.depgraph.schedule import choose_cuts
from vitslim.stages.prune.depgraph.targets import find_targets

RATIOS = PruningRatios(heads=0.5, head_dim=0.25, mlp=0.5, embed=0.5)
"""Published for DeiT-B at 4.16 GMACs."""
CONFIG = DepGraph(method="depgraph", scope="isomorphic", pruning_ratios=RATIOS, round_to=1)


def test_each_class_of_axes_is_ranked_by_itself_and_loses_its_own_ratio(tiny_graph: ModelGraph) -> None:
    """The scores of the first block are lower: it loses what its classes lose, but for 5 % of each axis."""
    targets = find_targets(sketch(tiny_graph), CONFIG).cut
    lists = rank_lists(tiny_graph, CONFIG, targets)
    assert len(set(lists.values())) == 5
    for kind in ("heads", "qk", "v", "mlp"):
        assert lists[f"blocks.0.{kind}"] == lists[f"blocks.1.{kind}"]
    scores = {t.axis: torch.full((t.size,), 1.0 if t.axis.startswith("blocks.0") else 2.0) for t in targets}
    lengths = ranked_schedule(targets, scores, lists)(1.0)
    sums = {kind: lengths[f"blocks.0.{kind}"] + lengths[f"blocks.1.{kind}"] for kind in ("heads", "qk", "v", "mlp")}
    assert sums == {"heads": 2, "qk": 48, "v": 48, "mlp": 256}
    assert (lengths["blocks.0.mlp"], lengths["blocks.0.qk"]) == (13, 16)
    assert lengths["embed"] == 32


@pytest.mark.slow
def test_the_published_ratios_give_the_published_size() -> None:
    """DeiT-B distilled: 4.16 GMACs and 20.69 M parameters."""
    dense = sketch(trace_timm("deit_base_distilled_patch16_224", {}))
    cost = dense.with_sizes(choose_cuts(dense, CONFIG.model_copy(update={"round_to": 2})).keep).cost()
    assert cost.macs / 1e9 == pytest.approx(4.16, rel=0.01)
    assert cost.params / 1e6 == pytest.approx(20.69, rel=0.02)
