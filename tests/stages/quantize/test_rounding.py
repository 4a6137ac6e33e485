"""Rounding of weights with compensation of the rounding errors."""

from __future__ import annotations

import pytest
import torch

from vitslim.errors import StageError
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.graph.ops.fake_quant import fake_quant
from vitslim.stages.quantize.weights.weight_scales import weight_scale
from vitslim.stages.reconstruction.curvature import Curvature, weighted_gram
from vitslim.stages.reconstruction.gptq import gptq, refine
from vitslim.stages.reconstruction.sensitivity import Sensitivity


def test_gptq_is_better_than_rounding_on_its_inputs_and_keeps_zeros() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    weight = torch.randn(10, 24, generator=generator)
    weight[:, ::3] = 0
    scale = weight_scale(weight, (-7, 7))
    nearest = fake_quant(weight, scale, 0, 0, -7, 7, 0)
    found = gptq(weight, scale, Curvature.of_rows(x.T @ x, 10), (-7, 7))
    error, plain = ((x @ (w - weight).T).square().sum().item() for w in (found, nearest))
    assert error < 0.7 * plain
    assert (found[:, ::3] == 0).all()
    torch.testing.assert_close(fake_quant(found, scale, 0, 0, -7, 7, 0), found)


@pytest.mark.parametrize("block", [0, 8])
@pytest.mark.parametrize("rows_alike", [False, True])
def test_refined_integers_and_scales_cost_less_than_those_of_gptq(block: int, rows_alike: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, outputs = (
        torch.randn(400, n, generator=generator) @ (torch.eye(n) + 0.4 * torch.randn(n, n, generator=generator))
        for n in (48, 32)
    )
    weight = torch.randn(32, 48, generator=generator)
    weight[:, ::3], weight[4] = 0, 0
    scale = weight_scale(weight, (-7, 7), block)
    by_row = Curvature.of_rows(x.T @ x, 32)
    curvature = Curvature.of(x.T @ x, outputs.T @ outputs) if rows_alike else by_row
    values = gptq(weight, scale, curvature, (-7, 7), block)
    found, scales = refine(weight, values, scale, curvature, (-7, 7))
    assert curvature.cost(found - weight) < 0.9 * curvature.cost(values - weight)
    assert (found[:, ::3] == 0).all() and (found[4] == 0).all()
    assert scales.shape == scale.shape and (scales > 0).all() and not torch.equal(scales, scale)
    torch.testing.assert_close(fake_quant(found, scales, 0, int(block > 0), -7, 7, block), found)
    again, same = refine(weight, found, scales, curvature, (-7, 7))
    assert curvature.cost(again - weight) <= 1.001 * curvature.cost(found - weight)
    assert (same / scales - 1).abs().max() < 0.2
    if not block:  # blocks take their scales one after another
        slope = ((found / scales[:, None]).double() * curvature.gradient(found - weight)).sum(dim=1)
        assert slope.abs().max() < 1e-3 * (curvature.diagonal() * found**2).sum(dim=1).max()
    if rows_alike:
        alone, _ = refine(weight, values, scale, by_row, (-7, 7))
        assert curvature.cost(found - weight) < 0.9 * curvature.cost(alone - weight)


@pytest.mark.parametrize("factor", [1e-12, 1e25])
def test_a_refinement_does_not_depend_on_the_scale_of_inputs(factor: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(60, 16, generator=generator), torch.randn(8, 16, generator=generator)
    scale = weight_scale(weight, (-7, 7))
    values = fake_quant(weight, scale, 0, 0, -7, 7, 0)
    gram = x.T.double() @ x.double()
    one, other = (refine(weight, values, scale, Curvature.of_rows(k * gram, 8), (-7, 7)) for k in (1.0, factor**2))
    for found, expected in zip(other, one, strict=True):
        torch.testing.assert_close(found, expected)


def test_gptq_of_independent_inputs_is_rounding() -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    scale = weight_scale(weight, (-7, 7))
    torch.testing.assert_close(
        gptq(weight, scale, Curvature.of_rows(torch.eye(8), 4), (-7, 7)), fake_quant(weight, scale, 0, 0, -7, 7, 0)
    )


@pytest.mark.parametrize("factor", [1e-30, 1e25])
def test_grams_of_very_small_and_large_inputs_do_not_overflow(factor: float) -> None:
    rows, weights = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), torch.rand(50)
    plain = torch.einsum("r,ri,rj->ij", weights.double(), rows.double(), rows.double())
    scaled = weighted_gram(factor * rows, weights) / factor**2
    assert torch.allclose(scaled, plain, rtol=0, atol=1e-5 * float(plain.amax()))


def test_gradients_that_are_not_finite_are_refused(tiny_graph: ModelGraph) -> None:
    layers = [(name, node) for name, nodes in layer_nodes(tiny_graph.module).items() for node in nodes]
    with torch.no_grad():
        tensor_of(tiny_graph.module, "blocks.1.mlp.fc2.weight").mul_(float("inf"))
    with pytest.raises(StageError, match="gradient"):
        list(Sensitivity(tiny_graph.module, layers, 0)(torch.zeros(1, *tiny_graph.source.image)))
