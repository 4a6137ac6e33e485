"""Calibration mathematics and the stage `quantize: ptq` on a traced ViT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vitslim.errors import StageError
from vitslim.graph.edits import InsertFakeQuant
from vitslim.graph.edits.fake_quant import insert_fake_quant, layer_nodes, quantized_layers
from vitslim.graph.edits.read_pixels import read_pixels
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.ops.fake_quant import activation_range, fake_quant
from vitslim.graph.sketch import sketch
from vitslim.recipe.stages import Ptq, TwoFour
from vitslim.stages.contract import StageContext
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.quantize.histogram import BINS, Extremes, Histogram, Range, range_statistic
from vitslim.stages.quantize.observe import ImageRanges, Observer, layer_inputs
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.stages.quantize.weights.reduced_range import limit_adjacent_sums, reduced_range_scale
from vitslim.stages.quantize.weights.weight_scales import group_range, minmax_scale, mse_scale, weight_scale
from vitslim.stages.reconstruction.curvature import Curvature
from vitslim.stages.reconstruction.gptq import gptq


def squared_error(values: torch.Tensor, scale: torch.Tensor, top: int) -> float:
    return (fake_quant(values, scale, 0, None, -top, top, 0) - values).square().sum().item()


@pytest.fixture
def context(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> StageContext:
    return digits_context(tiny_graph, calibration=70)


def test_minmax_scale_reaches_the_peak() -> None:
    assert minmax_scale(torch.tensor([127.0, 63.5, 0.0]), 127).tolist() == [1.0, 0.5, 1.0]


def test_mse_scale_of_exact_multiples_is_their_unit() -> None:
    integers = torch.arange(128.0)[None]
    assert mse_scale(integers * 0.25, (-127, 127)).item() == 0.25


def test_mse_scale_clips_when_one_outlier_costs_less_than_everyone_else() -> None:
    values = torch.cat([torch.full((4000,), 1.0), torch.full((4000,), 0.5), torch.tensor([2.0])])[None]
    scale = mse_scale(values, (-3, 3))
    assert scale.item() < 2.0 / 3
    assert squared_error(values, scale[0], 3) < squared_error(values, torch.tensor(2.0 / 3), 3)


def test_mse_scale_keeps_an_outlier_that_matters() -> None:
    values = torch.cat([torch.linspace(0, 1, 1000), torch.tensor([20.0])])[None]
    assert mse_scale(values, (-127, 127)).item() == pytest.approx(20 / 127, rel=0.1)


@settings(max_examples=40, deadline=None)
@given(arrays.arrays("float32", (2, 40), elements=st.floats(0, 50, width=32)), st.sampled_from([7, 127]))
def test_mse_scale_is_never_worse_than_minmax(magnitudes: object, top: int) -> None:
    values = torch.as_tensor(magnitudes)
    best, widest = mse_scale(values, (-top, top)), minmax_scale(values.amax(1), top)
    assert (best > 0).all() and best.isfinite().all()
    for row in range(2):
        assert squared_error(values[row], best[row], top) <= squared_error(values[row], widest[row], top) * (1 + 1e-5)


def test_histogram_in_batches_finds_the_range_of_all_values_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(5000, generator=generator) * factor for factor in (0.01, 1.0, 3.0)]
    histogram = Histogram()
    for batch in batches:
        histogram.observe(batch)
    values = torch.cat(batches)
    assert histogram.counts.sum() == len(values)
    peak = values.abs().max().item()
    assert Extremes(histogram.low, histogram.high).find_range(8, symmetric=True) == Range(
        pytest.approx(peak / 127), None
    )
    exact = mse_scale(values.abs()[None], (-7, 7))[0]
    found = torch.tensor(histogram.find_range(4, symmetric=True).scale)
    assert squared_error(values, found, 7) <= 1.02 * squared_error(values, exact, 7)


@pytest.mark.parametrize("peak", [1e-42, 1.0, 1e38])
def test_counts_of_a_histogram_are_those_of_histc(peak: float) -> None:
    values = torch.cat([torch.linspace(-1, 1, 10_000).double(), torch.tensor([0.0, 1.0, -1.0])]) * peak
    histogram = Histogram()
    histogram.observe(values.float())
    exact = torch.histc(values / peak, 2 * BINS, -1, 1)
    assert histogram.counts.sum() == len(values)
    # Values at the border of two bins may fall into either.
    assert (histogram.counts.cumsum(0) - exact.cumsum(0)).abs().max() <= 1 + (peak < 1e-40) * 20


def test_histogram_of_zeros_gives_a_usable_scale() -> None:
    histogram = Histogram()
    histogram.observe(torch.zeros(10))
    assert histogram.find_range(8) == Range(1.0, None)


def test_one_sided_values_get_a_zero_point() -> None:
    skewed, centered = Extremes(), Extremes()
    skewed.observe(torch.tensor([-0.17, 0.0, 5.0]))
    centered.observe(torch.tensor([-5.0, 0.0, 4.9]))
    found = skewed.find_range(8)
    assert found.scale == pytest.approx(5.17 / 255)
    assert found.zero_point == round(0.17 / found.scale)
    assert centered.find_range(8).zero_point is None
    assert skewed.find_range(8, symmetric=True).zero_point is None


@settings(max_examples=30, deadline=None)
@given(
    arrays.arrays("float32", 60, elements=st.floats(-30, 50, width=32)),
    st.sampled_from([4, 8]),
    st.sampled_from(["minmax", "mse"]),
)
def test_ranges_are_usable_and_minmax_clips_nothing(values: object, bits: int, method: str) -> None:
    x = torch.as_tensor(values)
    statistic = range_statistic(method)
    statistic.observe(x)
    scale, zero_point = statistic.find_range(bits)
    assert scale > 0 and (zero_point is None or 0 <= zero_point < 2**bits)
    quantized = fake_quant(x, torch.tensor(scale), zero_point or 0, None, *activation_range(bits, zero_point), 0)
    if method == "minmax":
        assert ((quantized - x).abs() <= 0.51 * scale + 1e-6).all()


def test_weight_scales_are_per_output_channel_or_group() -> None:
    weight = torch.stack([torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), -8.0), torch.zeros(3, 4, 4)])
    scale = weight_scale(weight, (-127, 127))
    assert scale.shape == (3,)
    restored = fake_quant(weight, scale, 0, 0, -127, 127, 0)
    torch.testing.assert_close(restored, weight, rtol=0.01, atol=0)
    blocks = weight_scale(torch.tensor([[1.0, 7.0, 0.1, 0.7]]), (-8, 7), group_size=2)
    torch.testing.assert_close(blocks, torch.tensor([[1.0, 0.1]]))
    exact = weight_scale(torch.tensor([[-8.0, 7.0, -4.0, 3.5]]), (-8, 7), group_size=2)
    torch.testing.assert_close(exact, torch.tensor([[1.0, 0.5]]), rtol=0.02, atol=0)


def test_one_sided_groups_use_all_integers() -> None:
    weight = torch.tensor([[0.0, 1.5, 0.7, 0.2, -3.0, 0.0, -0.4, -1.0], [0, 0, 0, 0, -0.8, 0.7, -0.1, 0.3]])
    scale, zeros = group_range(weight, (-8, 7), 4)
    assert zeros.tolist()[0] == [-8, 7] and (zeros == zeros.round()).all()
    found = fake_quant(weight, scale, 0, 1, -8, 7, 4, zeros)
    assert (found[weight == 0] == 0).all()
    plain = fake_quant(weight, weight_scale(weight, (-8, 7), 4), 0, 1, -8, 7, 4)
    assert (found - weight).square().sum() < 0.5 * (plain - weight).square().sum()


@settings(max_examples=30, deadline=None)
@given(arrays.arrays("float32", (3, 32), elements=st.floats(-4, 9, width=32)))
def test_zero_points_of_groups_are_integers_and_never_increase_the_error(values: object) -> None:
    weight = torch.as_tensor(values)
    scale, zeros = group_range(weight, (-8, 7), 16)
    assert (scale > 0).all() and ((zeros >= -8) & (zeros <= 7) & (zeros == zeros.round())).all()
    found = fake_quant(weight, scale, 0, 1, -8, 7, 16, zeros)
    widest = (weight.amax() - weight.amin()).clamp(min=0) + weight.abs().amax()
    assert ((found - weight).abs() <= 0.4 * widest + 1e-6).all()


def test_scales_are_raised_until_adjacent_sums_fit_16_bits() -> None:
    weight = torch.randn(8, 31, generator=torch.Generator().manual_seed(0))
    scale = reduced_range_scale(weight, weight_scale(weight, (-127, 127)))
    integers = (weight / scale[:, None]).round()
    pairs = torch.nn.functional.pad(integers, (0, 1)).reshape(8, -1, 2)
    assert (255 * pairs.clamp(min=0).sum(2) <= 32767).all()
    assert (255 * pairs.clamp(max=0).sum(2) >= -32768).all()
    assert (scale >= weight_scale(weight, (-127, 127))).all()
    alone = torch.tensor([[127.0, 0.0, -127.0, 100.0]])
    torch.testing.assert_close(reduced_range_scale(alone, torch.tensor([1.0])), torch.tensor([1.0]))


def test_the_larger_of_two_adjacent_integers_is_reduced() -> None:
    integers = torch.tensor([[127.0, 100.0, -127.0, -2.0, 127.0, -127.0, 90.0]])
    assert limit_adjacent_sums(integers).tolist() == [[28.0, 100.0, -126.0, -2.0, 127.0, -127.0, 90.0]]


@pytest.mark.parametrize("bits", [4, 8])
def test_scales_of_four_bits_are_refined(tiny_graph: ModelGraph, context: StageContext, bits: int) -> None:
    found = [
        PtqStage(Ptq(method="ptq", bits=bits, rounding=rounding)).apply(tiny_graph, context).graph.parameters()
        for rounding in ("nearest", "gptq")
    ]
    name = "vitslim.q.blocks.0.mlp.fc1.weight_scale"
    assert torch.equal(found[0][name], found[1][name]) == (bits == 8)


def test_only_weights_of_four_bits_use_the_curvature_of_outputs(
    tiny_graph: ModelGraph, context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The curvature of outputs needs memory for all layers at once; 8-bit weights do not use it."""
    is_joint: list[bool] = []

    def spy(weight: torch.Tensor, scale: torch.Tensor, curvature: Curvature, *others: Any) -> torch.Tensor:
        is_joint.append(bool((curvature.outputs - torch.diag(curvature.outputs.diagonal())).any()))
        return gptq(weight, scale, curvature, *others)

    monkeypatch.setattr("vitslim.stages.quantize.weights.rounding.gptq", spy)
    PtqStage(Ptq(method="ptq", bits=4, first_last_bits=8)).apply(tiny_graph, context)
    assert is_joint == [False, *[True] * 8, False]


@pytest.mark.parametrize("method", ["minmax", "mse"])
def test_every_layer_is_quantized_and_stays_close(tiny_graph: ModelGraph, context: StageContext, method: str) -> None:
    stage = PtqStage(Ptq(method="ptq", calibrate=method))
    result = stage.apply(tiny_graph, context)
    assert stage.ensures(tiny_graph, result.graph) == []
    assert quantized_layers(result.graph.module) == layer_nodes(tiny_graph.module).keys()
    assert isinstance(result.graph.edits[-1], InsertFakeQuant)
    assert result.skipped == ()
    assert {note.layer for note in result.changes} == layer_nodes(tiny_graph.module).keys()
    assert result.metrics["calibration_images"] == 70
    assert result.metrics["calibration_sqnr_db"] > 20
    assert not quantized_layers(tiny_graph.module)


def test_calibration_is_deterministic(tiny_graph: ModelGraph, context: StageContext) -> None:
    first, second = (PtqStage(Ptq(method="ptq")).apply(tiny_graph, context).graph.parameters() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_minmax_does_not_clip_the_largest_calibration_value(tiny_graph: ModelGraph, context: StageContext) -> None:
    result = PtqStage(Ptq(method="ptq", symmetric=True, activation_scaling="none")).apply(tiny_graph, context)
    images = torch.stack([context.data.calibration[i][0] for i in range(70)])
    seen = ImageRanges(len(images))
    seen.begin(len(images))
    Observer(tiny_graph.module, {"blocks.1.mlp.fc2.weight": seen}, layer_inputs(tiny_graph.module))(images)
    peak = max(bound.abs().max().item() for bound in seen.of())
    scale = result.graph.parameters()["vitslim.q.blocks.1.mlp.fc2.input_scale"].item()
    assert scale * 127 == pytest.approx(peak, rel=1e-5)


def test_skipped_layers_stay_in_float_and_are_listed(tiny_graph: ModelGraph, context: StageContext) -> None:
    stage = PtqStage(Ptq(method="ptq", skip=("head", "blocks.0.mlp.fc2.weight")))
    assert stage.requires(sketch(tiny_graph)) == []
    result = stage.apply(tiny_graph, context)
    assert {note.layer for note in result.skipped} == {"head.weight", "blocks.0.mlp.fc2.weight"}
    assert all(note.reason for note in result.skipped)
    assert quantized_layers(result.graph.module).isdisjoint({"head.weight", "blocks.0.mlp.fc2.weight"})
    assert sketch(result.graph).cost() == stage.estimate(sketch(tiny_graph)).cost()


def test_wrong_skips_are_named(tiny_graph: ModelGraph) -> None:
    (problem,) = PtqStage(Ptq(method="ptq", skip=("blocks.0.mlp.fc3",))).requires(sketch(tiny_graph))
    assert "blocks.0.mlp.fc3" in problem.message
    assert "blocks.0.mlp.fc" in problem.hint
    everything = tuple(layer_nodes(tiny_graph.module))
    (problem,) = PtqStage(Ptq(method="ptq", skip=everything)).requires(sketch(tiny_graph))
    assert "nothing to quantize" in problem.message


def test_a_quantized_model_is_not_quantized_again(tiny_graph: ModelGraph, context: StageContext) -> None:
    once = PtqStage(Ptq(method="ptq", calibrate="minmax")).apply(tiny_graph, context).graph
    (problem,) = PtqStage(Ptq(method="ptq")).requires(sketch(once))
    assert "already" in problem.message


def test_masked_weights_stay_exactly_zero(tiny_graph: ModelGraph, context: StageContext) -> None:
    sparse = TwoFourStage(TwoFour(method="two-four")).apply(tiny_graph, context).graph
    quantized = PtqStage(Ptq(method="ptq")).apply(sparse, context).graph
    name = "blocks.0.attn.qkv.weight"
    (node,) = layer_nodes(quantized.module)[name]
    weight, scale = quantized.parameters()[name], quantized.parameters()["vitslim.q.blocks.0.attn.qkv.weight_scale"]
    values = fake_quant(weight, scale, *node.args[1].args[2:])
    assert (values[~quantized.masks[name]] == 0).all()
    assert (values != 0).any()


def test_activations_that_are_not_finite_stop_the_stage(tiny_graph: ModelGraph, context: StageContext) -> None:
    with torch.no_grad():
        tiny_graph.parameters()["blocks.0.attn.proj.bias"].fill_(torch.inf)
    with pytest.raises(StageError, match="not finite"):
        PtqStage(Ptq(method="ptq")).apply(tiny_graph, context)


def test_scales_survive_a_rebuild_of_the_graph(tiny_graph: ModelGraph, context: StageContext) -> None:
    quantized = (
        PtqStage(Ptq(method="ptq", calibrate="minmax", activation_scaling="none")).apply(tiny_graph, context).graph
    )
    edit = quantized.edits[-1]
    assert isinstance(edit, InsertFakeQuant)
    rebuilt = insert_fake_quant(read_pixels(tiny_graph, ("patch_embed.proj.weight",)), edit.sites)
    rebuilt.module.load_state_dict(quantized.module.state_dict(), strict=True)
    images = torch.stack([context.data.calibration[i][0] for i in range(4)])
    with torch.no_grad():
        assert torch.equal(rebuilt.module(images), quantized.module(images))
