"""The operator `vitslim::fake_quant` and its insertion into a graph."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vitslim.errors import StageError
from vitslim.graph.edits import FakeQuantSite, InsertFakeQuant
from vitslim.graph.edits.fake_quant import (
    activation_scale_name,
    insert_fake_quant,
    layer_nodes,
    quantized_layers,
    weight_scale_name,
)
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.fake_quant import fake_quant, integer_range, weight_range

VALUES = arrays.arrays("float32", (3, 5), elements=st.floats(-100, 100, width=32))
SCALES = st.floats(2**-10, 4, width=32)


def sites_of(graph: ModelGraph) -> list[FakeQuantSite]:
    return [FakeQuantSite(weight, 8, 8) for weight in layer_nodes(graph.module)]


def test_known_values_with_ties_to_even_and_clipping() -> None:
    x = torch.tensor([0.0, 0.24, 0.25, 0.75, -0.75, 63.0, 64.0, -64.0, -70.0])
    result = fake_quant(x, torch.tensor(0.5), 0, None, -128, 127, 0)
    assert result.tolist() == [0.0, 0.0, 0.0, 1.0, -1.0, 63.0, 63.5, -64.0, -64.0]


def test_scales_go_along_their_axis() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    rows = fake_quant(x, torch.tensor([1.0, 2.0]), 0, 0, -127, 127, 0)
    columns = fake_quant(x, torch.tensor([1.0, 2.0, 2.0]), 0, 1, -127, 127, 0)
    assert rows.tolist() == [[1, 2, 3], [0, 2, 4]]
    assert columns.tolist() == [[1, 2, 4], [1, 2, 4]]


@settings(max_examples=50, deadline=None)
@given(values=VALUES, scale=SCALES)
def test_quantizing_is_idempotent_keeps_zero_and_errs_by_half_a_scale(values: object, scale: float) -> None:
    x, s = torch.as_tensor(values), torch.tensor(scale)
    x[0, 0] = 0.0
    once = fake_quant(x, s, 0, None, -127, 127, 0)
    assert torch.equal(fake_quant(once, s, 0, None, -127, 127, 0), once)
    assert once[0, 0] == 0
    inside = x.abs() <= 127 * s
    assert ((once - x).abs()[inside] <= s / 2 * (1 + 1e-5)).all()


def test_gradients_are_those_of_learned_step_sizes() -> None:
    x = torch.tensor([0.3, 1.2, 9.0, -9.0], requires_grad=True)
    scale = torch.tensor(0.5, requires_grad=True)
    fake_quant(x, scale, 0, None, -3, 3, 0).sum().backward()
    assert x.grad is not None and scale.grad is not None
    assert x.grad.tolist() == [1, 1, 0, 0]
    inside = (1 - 0.6) + (2 - 2.4)
    assert scale.grad.item() == pytest.approx((inside + 3 - 3) / math.sqrt(4 * 3), abs=1e-6)


def test_gradients_of_channel_scales_are_independent() -> None:
    x = torch.tensor([[0.3, 0.2], [9.0, 9.0]])
    scale = torch.tensor([0.5, 0.5], requires_grad=True)
    fake_quant(x, scale, 0, 0, -3, 3, 0).sum().backward()
    assert scale.grad is not None
    expected = torch.tensor([(1 - 0.6) + (0 - 0.4), 6.0]) / math.sqrt(2 * 3)
    torch.testing.assert_close(scale.grad, expected)


def test_the_operator_passes_opcheck() -> None:
    x = torch.randn(4, 6, requires_grad=True)
    torch.library.opcheck(fake_quant, (x, torch.rand(4, requires_grad=True) + 0.1, 0, 0, -127, 127, 0))
    torch.library.opcheck(fake_quant, (x, torch.tensor(0.1, requires_grad=True), 0, None, -128, 127, 0))


def test_weights_have_the_narrow_range_and_activations_the_full_one() -> None:
    assert integer_range(8, narrow=True) == (-127, 127)
    assert integer_range(8, narrow=False) == (-128, 127)
    assert weight_range(4, group_size=0) == (-7, 7)
    assert weight_range(4, group_size=32) == (-8, 7)


def test_insertion_adds_scales_as_parameters_and_one_edit(tiny_graph: ModelGraph) -> None:
    sites = sites_of(tiny_graph)
    quantized = insert_fake_quant(tiny_graph, sites)
    assert len(sites) == 10  # patch embedding, four linears in each of two blocks, head
    assert quantized.edits == (*tiny_graph.edits, InsertFakeQuant(tuple(sites)))
    assert quantized_layers(quantized.module) == {site.weight for site in sites}
    parameters = quantized.parameters()
    assert parameters["vitslim.q.blocks.0.attn.qkv.input_scale"].shape == ()
    assert parameters["vitslim.q.blocks.0.attn.qkv.weight_scale"].shape == (192,)
    assert set(parameters) == set(tiny_graph.parameters()) | {
        name for s in sites for name in (activation_scale_name(s.weight), weight_scale_name(s.weight))
    }
    assert not quantized_layers(tiny_graph.module), "the graph that was given must stay as it was"


def test_fine_scales_change_little_and_everything_can_be_trained(tiny_graph: ModelGraph) -> None:
    scales = {}
    for weight in layer_nodes(tiny_graph.module):
        tensor = tiny_graph.module.get_parameter(weight)
        scales[weight_scale_name(weight)] = tensor.detach().abs().flatten(1).amax(1) / 127
        scales[activation_scale_name(weight)] = torch.tensor(6.0 / 127)
    quantized = insert_fake_quant(tiny_graph, sites_of(tiny_graph), scales)
    images = torch.randn(4, 3, 32, 32)
    expected, found = tiny_graph.module(images), quantized.module(images)
    assert 0 < (expected - found).norm() < 0.5 * expected.norm()
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in quantized.parameters().values())


def test_scales_can_be_loaded_after_the_insertion(tiny_graph: ModelGraph) -> None:
    first = insert_fake_quant(tiny_graph, sites_of(tiny_graph))
    with torch.no_grad():
        for name, parameter in first.parameters().items():
            if name.startswith("vitslim.q."):
                parameter.fill_(0.03)
    again = insert_fake_quant(tiny_graph, sites_of(tiny_graph))
    again.module.load_state_dict(first.module.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(first.module(images), again.module(images))


@pytest.mark.parametrize(
    ("weights", "message", "hint"),
    [
        (["blocks.0.attn.qvk.weight"], "no layer has a weight", "blocks.0.attn.qkv.weight"),
        (["head.weight", "head.weight"], "already quantized", ""),
    ],
)
def test_wrong_sites_are_named(tiny_graph: ModelGraph, weights: list[str], message: str, hint: str) -> None:
    with pytest.raises(StageError, match=message) as caught:
        insert_fake_quant(tiny_graph, [FakeQuantSite(weight, 8, 8) for weight in weights])
    assert hint in caught.value.hint


def test_wrong_scale_shape_is_refused(tiny_graph: ModelGraph) -> None:
    with pytest.raises(StageError, match="expected"):
        insert_fake_quant(
            tiny_graph, [FakeQuantSite("head.weight", 8, 8)], {"vitslim.q.head.weight_scale": torch.ones(3)}
        )
