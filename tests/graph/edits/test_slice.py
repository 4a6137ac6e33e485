"""Slicing axes: equal outputs where expected, consistent shapes, and error messages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitslim.errors import StageError
from vitslim.graph.edits import Slice
from vitslim.graph.edits.slice import slice_axes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import cost, sketch
from vitslim.graph.trace import trace_timm


def test_cutting_hidden_units_equals_zeroing_them(tiny_graph: ModelGraph) -> None:
    """No norm runs over MLP and value axes: without their output weights they have no effect."""
    images = torch.randn(2, 3, 32, 32)
    kept_mlp, kept_v = range(0, 256, 2), range(8, 32)
    cut = slice_axes(tiny_graph, {"blocks.0.mlp": kept_mlp, "blocks.1.v": kept_v})
    with torch.no_grad():
        weights = tiny_graph.parameters()
        weights["blocks.0.mlp.fc2.weight"][:, 1::2] = 0
        weights["blocks.1.attn.proj.weight"].view(64, 2, 32)[:, :, :8] = 0
        assert torch.allclose(cut.module(images), tiny_graph.module(images), atol=1e-6)


def test_cutting_a_head_equals_zeroing_it(tiny_graph: ModelGraph) -> None:
    images = torch.randn(2, 3, 32, 32)
    cut = slice_axes(tiny_graph, {"blocks.0.heads": [1]})
    with torch.no_grad():
        tiny_graph.parameters()["blocks.0.attn.proj.weight"][:, :32] = 0
        assert torch.allclose(cut.module(images), tiny_graph.module(images), atol=1e-6)


def test_cutting_query_dims_keeps_the_scale(tiny_graph: ModelGraph) -> None:
    images = torch.randn(2, 3, 32, 32)
    cut = slice_axes(tiny_graph, {"blocks.0.qk": range(16)})
    with torch.no_grad():
        tiny_graph.parameters()["blocks.0.attn.qkv.weight"][:128].view(4, 32, 64)[:, 16:] = 0
        tiny_graph.parameters()["blocks.0.attn.qkv.bias"][:128].view(4, 32)[:, 16:] = 0
        assert torch.allclose(cut.module(images), tiny_graph.module(images), atol=1e-6)


AXES = {"embed": 64, "blocks.0.heads": 2, "blocks.0.qk": 32, "blocks.1.v": 32, "blocks.0.mlp": 256, "blocks.1.mlp": 256}
CUTS = st.fixed_dictionaries(
    {}, optional={name: st.sets(st.integers(0, size - 1), min_size=1, max_size=size) for name, size in AXES.items()}
)


@settings(max_examples=15, deadline=None)
@given(cuts=CUTS)
def test_any_cut_runs_and_trains(tiny_session_graph: ModelGraph, cuts: dict[str, set[int]]) -> None:
    graph = slice_axes(tiny_session_graph, {name: sorted(kept) for name, kept in cuts.items()})
    logits = graph.module(torch.randn(3, 3, 32, 32))
    assert logits.shape == (3, 10)
    logits.sum().backward()
    for name, parameter in graph.module.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all()
    sizes = {axis.name: axis.size for axis in graph.axes.axes}
    assert {name: sizes.get(name, 1) for name in cuts} == {name: len(kept) for name, kept in cuts.items()}


def test_two_cuts_are_one(tiny_graph: ModelGraph) -> None:
    images = torch.randn(2, 3, 32, 32)
    twice = slice_axes(slice_axes(tiny_graph, {"blocks.0.mlp": range(128)}), {"blocks.0.mlp": range(0, 128, 2)})
    once = slice_axes(tiny_graph, {"blocks.0.mlp": range(0, 128, 2)})
    assert torch.equal(twice.module(images), once.module(images))
    assert len(twice.edits) == 2
    assert once.edits == (Slice({"blocks.0.mlp": tuple(range(0, 128, 2))}),)


def test_slicing_does_not_change_the_input_graph(tiny_graph: ModelGraph) -> None:
    images = torch.randn(2, 3, 32, 32)
    before = tiny_graph.module(images)
    slice_axes(tiny_graph, {"embed": range(32)})
    assert torch.equal(tiny_graph.module(images), before)
    assert tiny_graph.edits == ()


def test_masks_are_cut_with_their_weights(tiny_graph: ModelGraph) -> None:
    name = "blocks.0.mlp.fc2.weight"
    tiny_graph.masks = {name: torch.rand(64, 256) > 0.5}
    cut = slice_axes(tiny_graph, {"blocks.0.mlp": range(1, 256, 2)})
    assert torch.equal(cut.masks[name], tiny_graph.masks[name][:, 1::2])


@pytest.mark.slow
def test_published_size_of_a_halved_vit() -> None:
    """DepGraph, section 9: ViT-B/32 at ratio 0.5 has 22.88 M parameters and 1.143 GMACs."""
    graph = trace_timm("vit_base_patch32_224", {})
    halves = {a.name: range(a.size // 2) for a in graph.axes.prunable if a.kind in {"embed", "qk", "v", "mlp"}}
    found = cost(slice_axes(graph, halves))
    assert found.params / 1e6 == pytest.approx(22.88, abs=0.005)
    assert found.macs / 1e9 == pytest.approx(1.143, abs=0.0005)
    assert sketch(graph).with_sizes({name: len(kept) for name, kept in halves.items()}).cost() == found


@pytest.mark.slow
def test_swin_halves_and_runs() -> None:
    graph = trace_timm("swin_tiny_patch4_window7_224", {})
    halved = slice_axes(graph, {axis.name: range(max(1, axis.size // 2)) for axis in graph.axes.prunable})
    assert halved.module(torch.randn(3, 3, 224, 224)).shape == (3, 1000)
    assert cost(halved).params < 0.3 * cost(graph).params


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"blocks.0.mpl": [0]}, "blocks.0.mpl"),
        ({"patch_embed.proj.weight:2": [0]}, "cannot be cut"),
        ({"embed": []}, "at least one"),
        ({"embed": [1, 1]}, "different"),
        ({"embed": [64]}, "0 to 63"),
        ({"embed": [-1]}, "0 to 63"),
    ],
)
def test_invalid_cuts_are_refused(tiny_graph: ModelGraph, kept: dict[str, list[int]], message: str) -> None:
    with pytest.raises(StageError, match=message) as caught:
        slice_axes(tiny_graph, kept)
    if "mpl" in message:
        assert "blocks.0.mlp" in caught.value.hint
