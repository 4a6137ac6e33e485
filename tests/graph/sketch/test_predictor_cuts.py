"""The cost of predictors: the published MACs of dTPS, and estimates against edited graphs."""

from __future__ import annotations

import pytest

from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import insert_fake_quant
from vitslim.graph.edits.insert_predictors import insert_predictors
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import LayerBits, ModelSketch, predictor_cuts, sketch
from vitslim.graph.trace import trace_timm
from vitslim.stages.token_squeeze.counts import planned_start_counts

TABLE = {
    0.9: ((176, 158, 142), 1.09, 4.04, 15.5),
    0.8: ((156, 125, 100), 0.93, 3.47, 13.3),
    0.7: ((137, 96, 67), 0.80, 2.99, 11.5),
    0.6: ((117, 70, 42), 0.69, 2.57, 9.9),
    0.5: ((98, 49, 24), 0.60, 2.23, 8.6),
    0.4: ((78, 31, 12), 0.53, 1.95, 7.5),
    0.3: ((58, 17, 5), 0.47, 1.71, 6.5),
}
"""Keep rate to the counts of blocks 3, 6 and 9, and the GMACs of DeiT-T, S and B with predictors and matching."""


@pytest.fixture(scope="module")
def deit_tiny() -> ModelSketch:
    return sketch(trace_timm("deit_tiny_patch16_224", {}))


def gmacs_as_published(dense: ModelSketch, keep_rate: float) -> float:
    """The table counts predictors and matching, and not the fusion."""
    counts = planned_start_counts(dense, (3, 6, 9), keep_rate, "floor")
    assert tuple(count.after for count in counts.values()) == TABLE[keep_rate][0]
    squeezed = dense.with_squeeze(predictor_cuts(dense, {b: c.after for b, c in counts.items()}, "dtps"))
    return sum(p.macs(squeezed.axes) for p in squeezed.matmuls if not p.name.endswith(".fusion")) / 1e9


@pytest.mark.parametrize("keep_rate", list(TABLE))
def test_cost_table_of_deit_tiny(keep_rate: float, deit_tiny: ModelSketch) -> None:
    assert round(gmacs_as_published(deit_tiny, keep_rate), 2) == TABLE[keep_rate][1]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "column"), [("deit_small_patch16_224", 2), ("deit_base_patch16_224", 3)])
def test_cost_table_of_larger_models(name: str, column: int) -> None:
    dense = sketch(trace_timm(name, {}))
    for keep_rate, row in TABLE.items():
        assert gmacs_as_published(dense, keep_rate) == pytest.approx(row[column], rel=0.01)


def test_a_predictor_costs_its_four_layers(deit_tiny: ModelSketch) -> None:
    squeezed = deit_tiny.with_squeeze(predictor_cuts(deit_tiny, {"blocks.3": 137}, "dynamicvit"))
    macs = sum(p.macs(squeezed.axes) for p in squeezed.matmuls if p.role == "predictor")
    assert macs == 196 * (192**2 + 192**2 // 2 + 192**2 // 8 + 192 // 2)


@pytest.mark.parametrize("method", ["dtps", "dynamicvit"])
def test_estimates_equal_the_cost_of_the_edited_graph(tiny_graph: ModelGraph, method: str) -> None:
    """Estimates of inserting predictors, then pruning and quantizing."""
    planned, graph, keep = sketch(tiny_graph), tiny_graph, {"blocks.0": 9, "blocks.1": 4}
    planned = planned.with_squeeze(predictor_cuts(planned, keep, method))
    graph = insert_predictors(graph, keep, method)
    assert sketch(graph).cost() == planned.cost()
    assert sketch(graph).tokens == planned.tokens == 5
    assert sketch(graph).squeezed == planned.squeezed == ("blocks.0", "blocks.1")
    cuts = {"blocks.0.mlp": 96, "blocks.1.qk": 16, "embed": 48}
    planned, graph = planned.with_sizes(cuts), slice_axes(graph, {name: range(n) for name, n in cuts.items()})
    assert sketch(graph).cost() == planned.cost()
    weights = [linear.weight for linear in planned.linears]
    assert weights == [linear.weight for linear in sketch(graph).linears]
    graph = insert_fake_quant(graph, [FakeQuantSite(weight, 8, 8) for weight in weights])
    assert sketch(graph).cost() == planned.with_bits(weights, LayerBits(8, 8)).cost()
