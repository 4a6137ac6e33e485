"""Rounding of weights that makes up for what it rounds away."""

from __future__ import annotations

import pytest
import torch

from vitslim.errors import StageError
from vitslim.graph.insert_fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.graph.ops.fake_quant import fake_quant
from vitslim.stages.layerwise import weighted_gram
from vitslim.stages.quantize.calibrate import weight_scale
from vitslim.stages.quantize.rounding import gptq, refine
from vitslim.stages.sensitivity import Sensitivity


def test_gptq_is_better_than_rounding_on_the_inputs_it_saw_and_keeps_zeros() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    weight = torch.randn(10, 24, generator=generator)
    weight[:, ::3] = 0
    scale = weight_scale(weight, (-7, 7))
    nearest = fake_quant(weight, scale, 0, 0, -7, 7, 0)
    found = gptq(weight, scale, x.T @ x, (-7, 7))
    error, plain = ((x @ (w - weight).T).square().sum().item() for w in (found, nearest))
    assert error < 0.7 * plain
    assert (found[:, ::3] == 0).all()
    torch.testing.assert_close(fake_quant(found, scale, 0, 0, -7, 7, 0), found)


@pytest.mark.parametrize("block", [0, 8])
def test_refined_codes_and_scales_are_nearer_than_those_of_gptq(block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 24, generator=generator) @ torch.randn(24, 24, generator=generator)
    weight = torch.randn(10, 24, generator=generator)
    weight[:, ::3], weight[4] = 0, 0
    scale = weight_scale(weight, (-7, 7), block)
    values = gptq(weight, scale, x.T @ x, (-7, 7), block)
    found, scales = refine(weight, values, scale, x.T @ x, (-7, 7), block)
    before, after = ((x @ (w - weight).T).square().sum(dim=0) for w in (values, found))
    assert after.sum() < 0.95 * before.sum()
    assert (after <= 1.01 * before).all()
    assert (found[:, ::3] == 0).all() and (found[4] == 0).all()
    assert scales.shape == scale.shape and (scales > 0).all() and not torch.equal(scales, scale)
    torch.testing.assert_close(fake_quant(found, scales, 0, int(block > 0), -7, 7, block), found)
    again, same = refine(weight, found, scales, x.T @ x, (-7, 7), block)
    assert (x @ (again - weight).T).square().sum() <= 1.001 * after.sum() and (same / scales - 1).abs().max() < 0.2


def test_gptq_of_independent_inputs_is_rounding() -> None:
    weight = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    scale = weight_scale(weight, (-7, 7))
    torch.testing.assert_close(gptq(weight, scale, torch.eye(8), (-7, 7)), fake_quant(weight, scale, 0, 0, -7, 7, 0))


@pytest.mark.parametrize("factor", [1e-30, 1e25])
def test_grams_of_very_small_and_large_inputs_do_not_overflow(factor: float) -> None:
    rows, weights = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)), torch.rand(50)
    plain = torch.einsum("r,ri,rj->ij", weights.double(), rows.double(), rows.double())
    scaled = weighted_gram(factor * rows, weights) / factor**2
    assert torch.allclose(scaled, plain, rtol=0, atol=1e-5 * float(plain.amax()))


def test_gradients_that_are_no_numbers_are_refused(tiny_graph: ModelGraph) -> None:
    layers = [(name, node) for name, nodes in layer_nodes(tiny_graph.module).items() for node in nodes]
    with torch.no_grad():
        tensor_of(tiny_graph.module, "blocks.1.mlp.fc2.weight").mul_(float("inf"))
    with pytest.raises(StageError, match="gradient at"):
        list(Sensitivity(tiny_graph.module, layers, 0)(torch.zeros(1, *tiny_graph.source.image)))
