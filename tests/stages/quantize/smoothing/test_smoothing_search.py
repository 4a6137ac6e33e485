"""Strength of smoothing: losses against real quantization, and the influence of images of other classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from vitslim.errors import StageError
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.scheme import QuantScheme
from vitslim.stages.quantize.smoothing.channels import smoothing_factors
from vitslim.stages.quantize.smoothing.places import ChannelPlace, centered, channel_places, with_activations
from vitslim.stages.quantize.smoothing.search import (
    held_out_losses,
    observe_gradients,
    observe_ranges,
    smooth_activations,
    strength_losses,
)
from vitslim.stages.quantize.smoothing.strength import (
    STRENGTHS,
    HeldOutLoss,
    SmoothedRange,
    smoothed_range,
    split_by_class,
)

CHANNELS = 24
PLACE = ChannelPlace(("layer.weight",), centered)
SCHEME = QuantScheme.of(Ptq())


def rows(count: int, scales: Tensor, seed: int = 0) -> Tensor:
    """Uniform values in (-scale, scale) of each channel, float (count, channels)."""
    return (2 * torch.rand(count, len(scales), generator=torch.Generator().manual_seed(seed)) - 1) * scales


def limits(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.amin(dim=0), x.amax(dim=0)


def quantized(x: Tensor, one: SmoothedRange) -> Tensor:
    """Activations as the quantizer of a range represents them."""
    first = ((one.low - one.shift) / one.scale).round()
    counted = ((x - one.shift) / one.scale).round()
    return torch.minimum(torch.maximum(counted, first), first + 255) * one.scale + one.shift


def test_a_smoothed_range_has_one_scale_and_covers_every_value() -> None:
    low, high = torch.tensor([-1.0, 0.0, -2.0]), torch.tensor([1.0, 8.0, 2.0])
    shift, factor = smoothing_factors(low, high, 1.0, shifts=True)
    one = smoothed_range((low, high), shift, factor, bits=8)
    torch.testing.assert_close((one.low, one.high), (low, high))
    torch.testing.assert_close(one.scale, (high - low) / 255)
    half = smoothed_range((low, high), torch.zeros(3), torch.ones(3), bits=8)
    assert half.low.tolist() == [-2] * 3 and half.high.tolist() == [8] * 3
    either = smoothed_range((low, high), torch.zeros(3), torch.ones(3), bits=4, symmetric=True)
    assert either.low.tolist() == [-8] * 3 and either.high.tolist() == [8] * 3
    assert either.scale.tolist() == pytest.approx([16 / 15] * 3)


def test_halves_share_no_class_where_classes_allow_it() -> None:
    classes = torch.tensor([3, 1, 3, 2, 1, 3, 7, 7, 2, 3])
    half = split_by_class(classes)
    assert half.sum() == 6  # of classes of 4, 2, 2 and 2
    assert not set(classes[half].tolist()) & set(classes[~half].tolist())
    assert split_by_class(torch.tensor([5] * 9 + [1])).tolist() == [True, False] * 5
    assert split_by_class(torch.tensor([5])).tolist() == [True]


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_loss_is_the_error_of_quantizing(strength: float) -> None:
    scales = torch.logspace(-1, 1, CHANNELS)
    seen, unseen = rows(400, scales), rows(4000, 1.3 * scales, seed=1)
    gradient = torch.randn(unseen.shape, generator=torch.Generator().manual_seed(2)) + 0.5
    one = smoothed_range(limits(seen), *smoothing_factors(*limits(seen), strength, shifts=True), bits=8)
    held = HeldOutLoss(limits(seen), [one])
    held.observe(unseen[:1000].view(10, 100, CHANNELS), gradient[:1000].view(10, 100, CHANNELS))
    held.observe(unseen[1000:], gradient[1000:])
    nothing = torch.zeros(1, CHANNELS)
    inside = torch.minimum(torch.maximum(unseen, one.low), one.high)
    clipped = ((unseen - inside) * gradient).double().square().sum()
    rounding = ((quantized(inside, one) - inside) * gradient).double().square().sum()
    found, rounded = held.losses(nothing, 127), held.losses(nothing, 127, clips=False)
    assert float(found - rounded) == pytest.approx(float(clipped), rel=1e-4)
    assert clipped > 0
    # Clipped rows are not rounded to within a scale; the estimate includes their error.
    assert float(rounded) == pytest.approx(float(rounding), rel=0.35)


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_the_loss_of_weights_is_the_error_of_rounding_them(strength: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x = rows(3000, torch.logspace(-1, 1, CHANNELS)) + 2.0
    weight = torch.randn(64, CHANNELS, generator=generator)
    outputs = torch.randn(len(x), len(weight), generator=generator)
    one = smoothed_range(limits(x), *smoothing_factors(*limits(x), strength, shifts=True), bits=8)
    held = HeldOutLoss(limits(x), [one])
    held.observe(x, outputs @ weight)
    matrix = weight * one.factor
    step = matrix.abs().amax(dim=1, keepdim=True) / 7
    change = ((matrix / step).round() * step - matrix) / one.factor
    moved = (((x - x.mean(dim=0)) @ change.T) * outputs).double().square().sum()
    found = held.losses(weight, 7, clips=False) - held.losses(torch.zeros_like(weight), 7, clips=False)
    assert float(found) == pytest.approx(float(moved), rel=0.4)


def test_channels_that_other_classes_activate_are_smoothed_less() -> None:
    scales = torch.logspace(-1, 1, CHANNELS)
    seen, alike = rows(400, scales), rows(400, scales, seed=1)
    unlike = alike.clone()
    unlike[::20, 0] = 5.0  # fifty times what the channel showed before
    weight, best = torch.eye(CHANNELS), []
    for unseen in (alike, unlike):
        held = HeldOutLoss(limits(seen), PLACE.candidates(limits(seen), bits=8, symmetric=False))
        held.observe(unseen, torch.ones_like(unseen))
        best.append(STRENGTHS[int(held.losses(weight, 127).argmin())])
        unclipped = STRENGTHS[int(held.losses(weight, 127, clips=False).argmin())]
        assert unclipped is not None and unclipped >= 0.3
    assert best[0] is not None and best[0] >= 0.5
    assert best[1] is None or best[1] <= 0.2


def test_a_gradient_that_is_not_finite_is_refused() -> None:
    x = rows(4, torch.ones(CHANNELS))
    held = HeldOutLoss(limits(x), PLACE.candidates(limits(x), bits=8, symmetric=False))
    with pytest.raises(StageError, match="not finite") as caught:
        held.observe(x, torch.full_like(x, torch.inf))
    assert "smooth: false" in caught.value.hint


def test_activations_are_copies_that_only_their_layers_read(tiny_graph: ModelGraph) -> None:
    places = channel_places(tiny_graph, tuple(layer_nodes(tiny_graph.module)), "per-channel")
    assert {"blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight", "blocks.1.mlp.fc2.weight"} <= set(places)
    names, tapped = with_activations(tiny_graph, {name: place.readers for name, place in places.items()})
    assert set(names) == set(places)
    images = torch.randn(3, *tiny_graph.source.image, generator=torch.Generator().manual_seed(0))
    layer = layer_nodes(tiny_graph.module)["blocks.1.mlp.fc2.weight"][0]
    runner = torch.fx.Interpreter(tiny_graph.module, garbage_collect_values=False)
    with torch.no_grad():
        expected = runner.run(images)
        logits, inputs = tapped(images)
    shown = dict(zip(names, inputs, strict=True))
    assert torch.equal(logits, expected)
    assert torch.equal(shown["blocks.1.mlp.fc2.weight"], runner.env[argument(layer, 0)])
    copies = [node for node in tapped.graph.nodes if node.target is torch.ops.aten.clone.default]
    assert all(len(node.users) == 2 for node in copies)  # one layer, and the output that shows it


@pytest.mark.parametrize("calibration", [1, 20])
def test_few_images_still_give_a_graph_that_computes_the_same(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext], calibration: int
) -> None:
    context = digits_context(tiny_graph, calibration=calibration)
    new = smooth_activations(tiny_graph, SCHEME, context, tuple(layer_nodes(tiny_graph.module))).graph
    images = torch.stack([context.data.val[i][0] for i in range(8)])
    with torch.no_grad():
        torch.testing.assert_close(new.module(images), tiny_graph.module(images), rtol=1e-3, atol=1e-4)
    old = tiny_graph.parameters()
    assert any(not torch.equal(tensor, old[name]) for name, tensor in new.parameters().items() if name in old)


def observed_range(graph: ModelGraph, weight: str, context: StageContext) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each channel of the input of a layer."""
    _, seen = observe_ranges(graph, {weight: ChannelPlace((weight,), centered)}, (), context)
    return seen.channels[weight].of()


def test_channels_are_centered_on_the_images_of_both_split_by_class(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    context, weight = digits_context(tiny_graph, calibration=60), "blocks.1.mlp.fc1.weight"
    new = smooth_activations(tiny_graph, SCHEME, context, tuple(layer_nodes(tiny_graph.module))).graph
    low, high = observed_range(new, weight, context)
    torch.testing.assert_close(low, -high, rtol=1e-3, atol=1e-4)


def test_dynamic_ranges_clip_nothing(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> None:
    context, weight = digits_context(tiny_graph, calibration=20), "blocks.1.mlp.fc1.weight"
    places, found, images = {weight: ChannelPlace((weight,), centered)}, [], context.data.calibration
    for activations in ("static", "dynamic"):
        scheme = replace(SCHEME, activations=activations)
        low, high = observed_range(tiny_graph, weight, context)
        losses = held_out_losses(scheme, places, {weight: (low / 2, high / 2)})
        observe_gradients(tiny_graph, {weight: [weight]}, losses, images, context)
        found.append(strength_losses(tiny_graph, scheme, places, losses)[weight])
    assert (found[0] > 2 * found[1]).all()
