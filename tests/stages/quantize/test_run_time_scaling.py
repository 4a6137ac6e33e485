"""Activations scaled at run time, per channel or per token: noise, and graphs with the same outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vitslim.errors import StageError
from vitslim.graph.edits.divide_tokens import divide_tokens
from vitslim.graph.edits.fake_quant import has_activation_scale
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.verify import draw_weights
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext
from vitslim.stages.export.annotate import quantizer_sites
from vitslim.stages.export.graph_passes.matrices import flatten_to_matrices
from vitslim.stages.export.graph_passes.unused_tokens import remove_unused_tokens
from vitslim.stages.quantize.placement.forms import candidate_forms
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.stages.quantize.smoothing.channels import outlier_factors
from vitslim.stages.quantize.smoothing.tokens import TokenNoise

aten = torch.ops.aten
FC2 = [f"blocks.{block}.mlp.fc2.weight" for block in (0, 1)]


def tokens(bounded: bool) -> tuple[Tensor, Tensor]:
    """Return activations of tokens of different size, after GELU if bounded, and gradients: float (2, 500, 24) each."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.rand(2, 500, 1, generator=generator).pow(3) * 8 + 0.3
    x = torch.randn(2, 500, 24, generator=generator) * sizes
    x = torch.nn.functional.gelu(x) if bounded else x
    return x, torch.randn(x.shape, generator=generator) * torch.rand(2, 500, 1, generator=generator)


def rounded(x: Tensor, low: Tensor, high: Tensor) -> Tensor:
    step = (high - low) / 255
    return (x / step).round() * step


def noise(x: Tensor, gradient: Tensor, floor: float, bounded: bool) -> float:
    """Return the measured rounding noise of divided tokens."""
    divisor = (x if bounded else x.abs()).amax(dim=-1, keepdim=True).clamp(min=floor)
    low = x.amin() / floor if bounded else torch.tensor(-1.0)
    return float(((rounded(x / divisor, low, torch.tensor(1.0)) * divisor - x) * gradient).square().sum())


@pytest.mark.parametrize("bounded", [True, False])
def test_the_best_floor_is_the_one_that_rounding_finds(bounded: bool) -> None:
    x, gradient = tokens(bounded)
    seen = TokenNoise(bounded)
    for some, there in zip(x, gradient, strict=True):
        seen.observe(some, there)
    best = seen.best()
    assert best is not None
    plain = float(((rounded(x, x.amin(), x.amax()) - x) * gradient).square().sum())
    found = noise(x, gradient, best.floor, bounded)
    assert best.noise_ratio == pytest.approx(found / plain, rel=0.4)
    assert best.noise_ratio < 0.3
    for factor in (0.25, 0.5, 2.0, 4.0):
        assert found < 1.05 * noise(x, gradient, best.floor * factor, bounded)


def test_tokens_of_equal_size_gain_nothing_and_zero_tokens_have_no_floor() -> None:
    seen, empty = TokenNoise(bounded_below=True), TokenNoise(bounded_below=True)
    x = torch.rand(100, 8)
    x[:, 0] = 1.0
    seen.observe(x, torch.ones(100, 8))
    empty.observe(torch.zeros(10, 8), torch.ones(10, 8))
    best = seen.best()
    assert best is not None
    assert best.floor == best.noise_ratio == 1
    assert empty.best() is None


def test_a_token_gradient_that_is_not_finite_is_refused() -> None:
    with pytest.raises(StageError, match="not finite"):
        TokenNoise(bounded_below=True).observe(torch.ones(1, 8), torch.full((1, 8), torch.inf))


def same(first: ModelGraph, second: ModelGraph, batch: int = 3) -> None:
    images = torch.randn(batch, *first.source.image, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(first.module(images), second.module(images), rtol=1e-4, atol=1e-5)


def test_the_report_lists_layers_with_divided_tokens(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """These activations are never dynamic: their range does not depend on the image."""
    monkeypatch.setattr("vitslim.stages.quantize.smoothing.places.WORTH_A_DIVISION", float("inf"))
    context = digits_context(tiny_graph, calibration=20)
    result = PtqStage(Ptq(activation_scaling="per-token")).apply(tiny_graph, context)
    assert [note.layer for note in result.changes if "each token divided" in note.result] == FC2
    sites = tuple(quantizer_sites(result.graph).values())
    dynamic = candidate_forms(result.graph, replace(QuantScheme.of(Ptq()), sites=sites))[-1]
    assert dynamic.name(()) == "dynamic"
    assert {site.weight for site in dynamic.sites.values() if has_activation_scale(site)} == {
        "patch_embed.proj.weight", *FC2
    }  # fmt: skip


def test_factors_shrink_large_channels_alone() -> None:
    low, high = torch.tensor([-0.2, -0.2, -0.2, -4.0, -0.2]), torch.tensor([0.0, 1.0, 1.0, 2.0, 8.0])
    assert outlier_factors(low, high, 1.0).tolist() == [1, 1, 1, 0.25, 0.125]
    assert outlier_factors(low, high, 0.5).tolist() == pytest.approx([1, 1, 1, 0.5, 0.125**0.5])
    assert outlier_factors(torch.zeros(3), torch.zeros(3), 1.0).tolist() == [1, 1, 1]


def test_divisions_work_on_unused_tokens_and_on_matrices(tiny_graph: ModelGraph) -> None:
    """In the last block only the class token is divided, and no activation is reshaped between row-wise operators."""
    draw_weights(tiny_graph.module, torch.Generator().manual_seed(0))
    plain, divided = tiny_graph.copy(), divide_tokens(tiny_graph, dict.fromkeys(FC2, 1.0))
    for graph in (plain, divided):
        remove_unused_tokens(graph)
    kinds = (aten.slice.Tensor, aten.select.int)
    cuts = [[node.target for node in one.module.graph.nodes if node.target in kinds] for one in (plain, divided)]
    assert cuts[0] == cuts[1]
    same(divided, tiny_graph)
    on_rows = divided.copy()
    flatten_to_matrices(on_rows)
    same(on_rows, tiny_graph)
