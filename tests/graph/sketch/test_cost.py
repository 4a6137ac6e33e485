"""Costs compared with published and derived figures, and estimates with edited graphs."""

from __future__ import annotations

import pytest
import torch

from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import insert_fake_quant
from vitslim.graph.edits.insert_squeeze import insert_squeeze
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import LayerBits, attention_cuts, cost, sketch
from vitslim.graph.trace import trace_timm


@pytest.mark.parametrize(
    ("name", "gmacs", "million_params"),
    [
        ("deit_tiny_patch16_224", 1.254, 5.717),
        ("deit_small_patch16_224", 4.599, 22.051),
        pytest.param("deit_base_patch16_224", 17.564, 86.568, marks=pytest.mark.slow),
    ],
)
def test_published_macs(name: str, gmacs: float, million_params: float) -> None:
    found = cost(trace_timm(name, {}))
    assert found.macs / 1e9 == pytest.approx(gmacs, abs=5e-4)
    assert found.params / 1e6 == pytest.approx(million_params, abs=1e-3)
    assert found.bops == 32 * 32 * found.macs
    assert found.weight_bytes == 4 * found.params


def test_params_are_those_of_the_module(tiny_graph: ModelGraph) -> None:
    assert cost(tiny_graph).params == sum(p.numel() for p in tiny_graph.module.parameters())


def test_estimates_equal_the_cost_of_the_edited_graph(tiny_graph: ModelGraph) -> None:
    """Estimates of pruning, squeezing and quantizing, alone and together."""
    planned, graph = sketch(tiny_graph), tiny_graph
    cuts = {"blocks.0.mlp": 96, "blocks.1.qk": 16, "blocks.0.v": 8, "embed": 48}
    planned, graph = planned.with_sizes(cuts), slice_axes(graph, {name: range(n) for name, n in cuts.items()})
    assert sketch(graph).cost() == planned.cost()
    planned = planned.with_squeeze(attention_cuts(planned, {"blocks.0": 9}))
    graph = insert_squeeze(graph, {"blocks.0": 9})
    assert sketch(graph).cost() == planned.cost()
    assert sketch(graph).tokens == planned.tokens == 10
    weights = [linear.weight for linear in planned.linears]
    graph = insert_fake_quant(graph, [FakeQuantSite(weight, 8, 8) for weight in weights])
    assert sketch(graph).cost() == planned.with_bits(weights, LayerBits(8, 8)).cost()


def test_bits_and_sparsity(tiny_graph: ModelGraph) -> None:
    """INT8 takes a sixteenth of the BOPs of a layer; 2:4 halves them and stores 5 bits a weight on the device."""
    dense = sketch(tiny_graph)
    weight = "blocks.0.mlp.fc1.weight"
    layer = next(product for product in dense.matmuls if product.weight == weight)
    macs, numel = layer.macs(dense.axes), tiny_graph.parameters()[weight].numel()
    quantized = dense.with_bits([weight], LayerBits(8, 8))
    assert dense.cost().bops - quantized.cost().bops == macs * (32 * 32 - 8 * 8)
    sparse = quantized.with_sparsity([weight], "2:4")
    assert quantized.cost().bops - sparse.cost().bops == macs * 8 * 8 // 2
    narrow = dense.with_bits([weight], LayerBits(4, 8))
    in_pairs = narrow.with_sparsity([weight], "2:4-pairs")
    assert in_pairs.cost().bops == narrow.cost().bops, "eight-bit GEMMs skip no pairs"
    assert sparse.cost().weight_bytes == quantized.cost().weight_bytes
    assert quantized.cost().device_bytes - sparse.cost().device_bytes == numel * 3 // 8


@pytest.mark.parametrize(("keep_ratio", "gmacs"), [(0.9, 1.08), (0.7, 0.81), (0.5, 0.62)])
def test_etps_cost_table(deit_tiny: ModelGraph, keep_ratio: float, gmacs: float) -> None:
    """DeiT-T, floor counts, with the similarity matmul and without the fusion, as the paper counts them."""
    dense = sketch(deit_tiny)
    keep = {f"blocks.{b}": int(196 * keep_ratio**stage) for stage, b in enumerate((3, 6, 9), start=1)}
    squeezed = dense.with_squeeze(attention_cuts(dense, keep))
    uncounted = [p.macs(squeezed.axes) for p in squeezed.matmuls if p.name.endswith(("fusion", "class_attention"))]
    assert (squeezed.cost().macs - sum(uncounted)) / 1e9 == pytest.approx(gmacs, rel=0.01)


def test_cost_of_a_graph_in_training_mode(tiny_graph: ModelGraph) -> None:
    """Computing the cost does not change the outputs."""
    images = torch.randn(2, 3, 32, 32)
    before = tiny_graph.module(images)
    cost(tiny_graph)
    assert torch.equal(tiny_graph.module(images), before)


def test_positions_of_a_stem_are_not_tokens() -> None:
    """EfficientFormer: convolutions come before the blocks with tokens; the stem makes 112x112 positions."""
    found = sketch(trace_timm("efficientformer_l1", {"depths": (1, 1, 1, 2), "num_classes": 10}))
    stem = next(product for product in found.matmuls if product.name == "stem.conv1.weight")
    assert stem.macs(found.axes) == 24 * 3 * 9 * 112 * 112
