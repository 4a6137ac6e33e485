"""Gradients at layer outputs, and layers solved with the weights that they give."""

from __future__ import annotations

import pytest
import torch

from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.sketch import sketch
from vitslim.progress import Silent
from vitslim.stages.reconstruction.curvature import Curvature, effective_rows
from vitslim.stages.reconstruction.layerwise import LayerSolver
from vitslim.stages.reconstruction.sensitivity import Sensitivity, row_weights, scaled_gradients


def sketch_names(graph: ModelGraph) -> list[str]:
    return [layer.weight for layer in sketch(graph).linears if layer.role != "head"]


def test_unchanged_weights_give_the_same_model(tiny_graph: ModelGraph) -> None:
    images = torch.randn(8, *tiny_graph.source.image, generator=torch.Generator().manual_seed(0))
    same = LayerSolver(images, Silent(), "")(tiny_graph, list(sketch_names(tiny_graph)), lambda _n, w, _g: w)
    with torch.no_grad():
        torch.testing.assert_close(same.module(images), tiny_graph.module(images), rtol=0, atol=1e-4)


def test_rows_are_weighted_and_the_mean_output_of_a_changed_layer_stays(tiny_graph: ModelGraph) -> None:
    images = torch.randn(8, *tiny_graph.source.image, generator=torch.Generator().manual_seed(0))  # one backward pass
    name = "head.weight"
    costs: list[Curvature] = []

    def halve(_name: str, weight: torch.Tensor, curvature: Curvature) -> torch.Tensor:
        costs.append(curvature)
        return 0.5 * weight

    halved = LayerSolver(images, Silent(), "", joint=[name])(tiny_graph, [name], halve)
    with torch.no_grad():
        before, after = tiny_graph.module(images), halved.module(images)
    layer = layer_nodes(tiny_graph.module)[name][0]
    (found,) = Sensitivity(tiny_graph.module, [(name, layer)], 0)(images)
    weights, gradients = row_weights(found.norms), scaled_gradients(found.gradients, found.norms)
    x = found.inputs
    centered = x - weights @ x / len(x)
    seen = effective_rows(weights)
    expected = Curvature.of(centered.T @ torch.diag(weights) @ centered, gradients.T @ gradients, seen)
    torch.testing.assert_close(costs[0].inputs, expected.inputs, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(costs[0].outputs, expected.outputs)
    torch.testing.assert_close(weights @ after, weights @ before, rtol=0, atol=1e-4)
    assert not torch.allclose(after, before, atol=1e-3)


def test_only_outputs_that_affect_the_logits_have_a_gradient(tiny_graph: ModelGraph) -> None:
    """In the last MLP only the class token affects the logits."""
    layers = {name: nodes[0] for name, nodes in layer_nodes(tiny_graph.module).items()}
    picked = ["patch_embed.proj.weight", "blocks.1.mlp.fc2.weight", "head.weight"]
    images = torch.randn(3, *tiny_graph.source.image, generator=torch.Generator().manual_seed(0))
    found = list(Sensitivity(tiny_graph.module, [(name, layers[name]) for name in picked], 0)(images))
    assert [one.name for one in found] == picked
    patches, last, head = (one.norms for one in found)
    head_gradients = scaled_gradients(found[2].gradients, head)
    drawn_directions = torch.randn(3, head_gradients.shape[1], generator=torch.Generator().manual_seed(0))
    length = drawn_directions.norm(dim=1)
    torch.testing.assert_close(head.float(), length)
    torch.testing.assert_close(head_gradients, drawn_directions / length.sqrt()[:, None])
    assert len(patches) == 3 * 16 and (patches > 0).all()
    assert ((last.view(3, -1) > 0).nonzero() == torch.tensor([[0, 0], [1, 0], [2, 0]])).all()
    assert len(head) == 3 and row_weights(head).mean().item() == pytest.approx(1)
    assert row_weights(torch.zeros(4)).tolist() == [1.0] * 4
