"""Layer-wise reconstruction on the activations of the compressed graph."""

from __future__ import annotations

import pytest
import torch

from vitslim.errors import StageError
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.trace import trace_timm
from vitslim.progress import Silent
from vitslim.stages.quantize.observe import solvable_layers
from vitslim.stages.reconstruction.curvature import Curvature, effective_rows, weighted_gram
from vitslim.stages.reconstruction.layerwise import LayerSolver
from vitslim.stages.reconstruction.sensitivity import (
    BATCH,
    Sensitivity,
    row_weights,
    sampled_gradients,
    scaled_gradients,
)
from vitslim.training.forms.taps import with_taps
from vitslim.training.tasks.classification import SAMPLING_TEMPERATURE, Classification

NAME = "blocks.1.mlp.fc2.weight"


def images_of(graph: ModelGraph) -> torch.Tensor:
    return torch.randn(6, *graph.source.image, generator=torch.Generator().manual_seed(0))


def rounded(x: torch.Tensor) -> torch.Tensor:
    return 0.25 * torch.round(4 * x + 0.3)


def test_a_layer_is_solved_on_its_changed_input_and_keeps_its_mean_output(tiny_graph: ModelGraph) -> None:
    costs: list[Curvature] = []

    def solve(_name: str, weight: torch.Tensor, curvature: Curvature) -> torch.Tensor:
        costs.append(curvature)
        return weight

    images = images_of(tiny_graph)
    layer = layer_nodes(tiny_graph.module)[NAME][0]
    _, (x, before) = with_taps(tiny_graph.module, [layer.args[0], layer])(images)  # type: ignore[list-item]
    solver = LayerSolver(images, Silent(), "", inputs={NAME: rounded}, sensitive=False)
    solved = solver(tiny_graph, [NAME], solve)
    rows = rounded(x.detach()).flatten(end_dim=-2)
    expected = weighted_gram(rows - rows.mean(dim=0), torch.ones(len(rows)))
    torch.testing.assert_close(costs[0].inputs, Curvature.of_rows(expected, 1, len(rows)).inputs, rtol=1e-4, atol=1e-4)
    assert torch.allclose(costs[0].outputs, torch.eye(64, dtype=torch.float64))
    weight, bias = (solved.parameters()[f"blocks.1.mlp.fc2.{leaf}"] for leaf in ("weight", "bias"))
    after = rows @ weight.T + bias
    torch.testing.assert_close(after.mean(dim=0), before.flatten(end_dim=-2).mean(dim=0), rtol=0, atol=1e-5)
    assert not torch.allclose(bias, tiny_graph.parameters()["blocks.1.mlp.fc2.bias"], atol=1e-4)


def test_later_layers_see_the_changed_inputs_of_earlier_ones(tiny_graph: ModelGraph) -> None:
    def gram_of(inputs: dict[str, object]) -> torch.Tensor:
        found: list[torch.Tensor] = []

        def solve(_name: str, weight: torch.Tensor, curvature: Curvature) -> torch.Tensor:
            found.append(curvature.inputs)
            return weight

        solver = LayerSolver(images_of(tiny_graph), Silent(), "", inputs, sensitive=False)  # type: ignore[arg-type]
        solver(tiny_graph, ["head.weight"], solve)
        return found[0]

    assert torch.equal(gram_of({}), gram_of({}))
    assert not torch.allclose(gram_of({}), gram_of({NAME: rounded}), rtol=1e-3)


@pytest.mark.parametrize("draws", [0, 3])
def test_output_curvature_is_summed_over_all_images_and_draws(tiny_graph: ModelGraph, draws: int) -> None:
    images = images_of(tiny_graph).repeat(3, 1, 1, 1)
    assert len(images) > BATCH
    found: dict[str, Curvature] = {}

    def solve(name: str, weight: torch.Tensor, curvature: Curvature) -> torch.Tensor:
        found[name] = curvature
        return weight

    LayerSolver(images, Silent(), "", joint=["head.weight"], draws=draws)(tiny_graph, ["head.weight", NAME], solve)
    assert torch.equal(found[NAME].outputs, torch.eye(64, dtype=torch.float64))
    head = [("head.weight", layer_nodes(tiny_graph.module)["head.weight"][0])]
    sensitivity = Sensitivity(tiny_graph.module, head, 0, draws)
    seen = [[*sensitivity(batch)] for batch in torch.split(images, BATCH)]
    scaled = [scaled_gradients(one.gradients, one.norms) for batch in seen for one in batch]
    grams = [rows.T @ rows for rows in scaled]
    weights = row_weights(torch.cat([torch.stack([one.norms for one in batch]).sum(dim=0) for batch in seen]))
    assert len(grams) == len(seen) * max(1, draws) > 1
    expected = Curvature.of(torch.eye(1), torch.stack(grams).sum(dim=0), effective_rows(weights)).outputs
    torch.testing.assert_close(found["head.weight"].outputs, expected)
    assert float(expected.diagonal().mean()) == pytest.approx(1)


def test_classes_are_sampled_by_the_probabilities_of_the_model(tiny_graph: ModelGraph) -> None:
    """At the head the gradient of a class's log-probability is (1 at the class - probabilities) / temperature."""
    images, draws = images_of(tiny_graph)[:2], 600
    with torch.no_grad():
        tiny_graph.module.get_parameter("head.weight").mul_(20)  # or all classes are about equally likely
        likely = torch.softmax(tiny_graph.module(images) / SAMPLING_TEMPERATURE, dim=1)
    tapped = with_taps(tiny_graph.module, [layer_nodes(tiny_graph.module)["head.weight"][0]])
    found = sampled_gradients(tapped, images, torch.Generator().manual_seed(0), draws, Classification())
    ones = SAMPLING_TEMPERATURE * torch.stack([gradient for _, (gradient,) in found]) + likely
    classes = ones.argmax(dim=2)
    torch.testing.assert_close(ones, torch.nn.functional.one_hot(classes, likely.shape[1]).float(), rtol=0, atol=1e-4)
    often = torch.stack([torch.bincount(one, minlength=likely.shape[1]) for one in classes.T]) / draws
    assert likely.amax() > 2 * likely.mean()
    torch.testing.assert_close(often, likely, rtol=0, atol=0.08)


def test_logits_that_are_not_finite_are_refused(tiny_graph: ModelGraph) -> None:
    layer = layer_nodes(tiny_graph.module)["head.weight"][0]
    with torch.no_grad():
        tiny_graph.module.get_parameter("head.weight").fill_(float("nan"))
    with pytest.raises(StageError, match="logits of calibration images"):
        next(Sensitivity(tiny_graph.module, [("head.weight", layer)], 0, draws=1)(images_of(tiny_graph)))


def test_without_sensitivity_and_bias_correction_there_is_no_backward_pass_and_biases_stay(
    tiny_graph: ModelGraph,
) -> None:
    with torch.no_grad():
        tiny_graph.module.get_parameter(NAME).mul_(1e30)  # gradients would not be finite
    solver = LayerSolver(images_of(tiny_graph), Silent(), "", sensitive=False, biases=False)
    solved = solver(tiny_graph, [NAME], lambda _name, weight, _curvature: 0 * weight)
    assert (solved.parameters()[NAME] == 0).all()
    for name in ("blocks.1.mlp.fc2.bias", "head.weight"):
        assert torch.equal(solved.parameters()[name], tiny_graph.parameters()[name])


@pytest.mark.slow
def test_patches_are_a_matmul_and_overlapping_windows_are_not() -> None:
    graph = trace_timm("levit_128s", {"num_classes": 10})
    names = set(solvable_layers(graph.module))
    assert names.isdisjoint(name for name in layer_nodes(graph.module) if name.startswith("stem"))
    plain = trace_timm("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1,
                                                "num_heads": 2, "num_classes": 10})  # fmt: skip
    assert set(solvable_layers(plain.module)) == set(layer_nodes(plain.module))
