"""How far channels are equalized: costs against quantization done, and what images of other classes change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vitslim.errors import StageError
from vitslim.graph.edits.fake_quant import layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import argument
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext
from vitslim.stages.quantize.smoothing.channels import equalizing
from vitslim.stages.quantize.smoothing.search import Equalizer, Place, _centered, _tapped
from vitslim.stages.quantize.smoothing.strength import STRENGTHS, HeldOut, Spread, halves, spread

CHANNELS = 24
PLACE = Place(("layer.weight",), _centered)


def rows(count: int, scales: Tensor, seed: int = 0) -> Tensor:
    """Uniform values in (-scale, scale) of each channel, float (count, channels)."""
    return (2 * torch.rand(count, len(scales), generator=torch.Generator().manual_seed(seed)) - 1) * scales


def limits(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.amin(dim=0), x.amax(dim=0)


def codes(x: Tensor, one: Spread) -> Tensor:
    """What the codes of a spread make of inputs."""
    first = ((one.low - one.shift) / one.step).round()
    counted = ((x - one.shift) / one.step).round()
    return torch.minimum(torch.maximum(counted, first), first + 255) * one.step + one.shift


def test_a_spread_has_one_step_and_reaches_every_value() -> None:
    low, high = torch.tensor([-1.0, 0.0, -2.0]), torch.tensor([1.0, 8.0, 2.0])
    shift, factor = equalizing(low, high, 1.0, shifts=True)
    one = spread((low, high), shift, factor, bits=8)
    torch.testing.assert_close((one.low, one.high), (low, high))
    torch.testing.assert_close(one.step, (high - low) / 255)
    half = spread((low, high), torch.zeros(3), torch.ones(3), bits=8)
    assert half.low.tolist() == [-2] * 3 and half.high.tolist() == [8] * 3
    either = spread((low, high), torch.zeros(3), torch.ones(3), bits=4, symmetric=True)
    assert either.low.tolist() == [-8] * 3 and either.high.tolist() == [8] * 3
    assert either.step.tolist() == pytest.approx([16 / 15] * 3)


def test_halves_share_no_class_where_classes_allow_it() -> None:
    classes = torch.tensor([3, 1, 3, 2, 1, 3, 7, 7, 2, 3])
    half = halves(classes)
    assert half.sum() == 6  # of classes of 4, 2, 2 and 2
    assert not set(classes[half].tolist()) & set(classes[~half].tolist())
    assert halves(torch.tensor([5] * 9 + [1])).tolist() == [True, False] * 5
    assert halves(torch.tensor([5])).tolist() == [True]


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_cost_is_that_of_quantizing(strength: float) -> None:
    scales = torch.logspace(-1, 1, CHANNELS)
    seen, unseen = rows(400, scales), rows(4000, 1.3 * scales, seed=1)
    gradient = torch.randn(unseen.shape, generator=torch.Generator().manual_seed(2)) + 0.5
    one = spread(limits(seen), *equalizing(*limits(seen), strength, shifts=True), bits=8)
    held = HeldOut(limits(seen), [one])
    held.observe(unseen[:1000].view(10, 100, CHANNELS), gradient[:1000].view(10, 100, CHANNELS))
    held.observe(unseen[1000:], gradient[1000:])
    nothing = torch.zeros(1, CHANNELS)
    inside = torch.minimum(torch.maximum(unseen, one.low), one.high)
    cut = ((unseen - inside) * gradient).double().square().sum()
    rounding = ((codes(inside, one) - inside) * gradient).double().square().sum()
    found, rounded = held.losses(nothing, 127), held.losses(nothing, 127, cut=False)
    assert float(found - rounded) == pytest.approx(float(cut), rel=1e-4)
    assert cut > 0
    # Rows beyond the codes are not rounded to within a step as well; the estimate counts them.
    assert float(rounded) == pytest.approx(float(rounding), rel=0.35)


@pytest.mark.parametrize("strength", [0.0, 0.7])
def test_the_cost_of_weights_is_that_of_rounding_them(strength: float) -> None:
    generator = torch.Generator().manual_seed(3)
    x = rows(3000, torch.logspace(-1, 1, CHANNELS)) + 2.0
    weight = torch.randn(64, CHANNELS, generator=generator)
    outputs = torch.randn(len(x), len(weight), generator=generator)
    one = spread(limits(x), *equalizing(*limits(x), strength, shifts=True), bits=8)
    held = HeldOut(limits(x), [one])
    held.observe(x, outputs @ weight)
    matrix = weight * one.factor
    step = matrix.abs().amax(dim=1, keepdim=True) / 7
    change = ((matrix / step).round() * step - matrix) / one.factor
    moved = (((x - x.mean(dim=0)) @ change.T) * outputs).double().square().sum()
    found = held.losses(weight, 7, cut=False) - held.losses(torch.zeros_like(weight), 7, cut=False)
    assert float(found) == pytest.approx(float(moved), rel=0.4)


def test_what_other_classes_excite_is_equalized_less() -> None:
    scales = torch.logspace(-1, 1, CHANNELS)
    seen, alike = rows(400, scales), rows(400, scales, seed=1)
    unlike = alike.clone()
    unlike[::20, 0] = 5.0  # fifty times what the channel showed before
    weight, best = torch.eye(CHANNELS), []
    for unseen in (alike, unlike):
        held = HeldOut(limits(seen), PLACE.candidates(limits(seen), bits=8, symmetric=False))
        held.observe(unseen, torch.ones_like(unseen))
        best.append(STRENGTHS[int(held.losses(weight, 127).argmin())])
        uncut = STRENGTHS[int(held.losses(weight, 127, cut=False).argmin())]
        assert uncut is not None and uncut >= 0.3
    assert best[0] is not None and best[0] >= 0.5
    assert best[1] is None or best[1] <= 0.2


def test_a_gradient_that_is_no_number_is_refused() -> None:
    x = rows(4, torch.ones(CHANNELS))
    held = HeldOut(limits(x), PLACE.candidates(limits(x), bits=8, symmetric=False))
    with pytest.raises(StageError, match="no finite number") as caught:
        held.observe(x, torch.full_like(x, torch.inf))
    assert "smooth: false" in caught.value.hint


def test_places_show_what_their_layers_read_and_nothing_else(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    equalizer = Equalizer(Ptq(), digits_context(tiny_graph))
    places = equalizer._places(tiny_graph, tuple(layer_nodes(tiny_graph.module)))
    assert {"blocks.0.attn.qkv.weight", "blocks.0.attn.proj.weight", "blocks.1.mlp.fc2.weight"} <= set(places)
    names, tapped = _tapped(tiny_graph, {name: place.readers for name, place in places.items()})
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
    new = Equalizer(Ptq(), context)(tiny_graph, tuple(layer_nodes(tiny_graph.module)))
    images = torch.stack([context.data.val[i][0] for i in range(8)])
    with torch.no_grad():
        torch.testing.assert_close(new.module(images), tiny_graph.module(images), rtol=1e-3, atol=1e-4)
    old = tiny_graph.parameters()
    assert any(not torch.equal(tensor, old[name]) for name, tensor in new.parameters().items() if name in old)


def test_channels_are_centered_on_the_images_of_both_halves(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    context, weight = digits_context(tiny_graph, calibration=60), "blocks.1.mlp.fc1.weight"
    equalizer = Equalizer(Ptq(), context)
    new = equalizer(tiny_graph, tuple(layer_nodes(tiny_graph.module)))
    images = context.data.calibration
    low, high = equalizer._ranges(new, {weight: Place((weight,), _centered)}, images)[weight]
    torch.testing.assert_close(low, -high, rtol=1e-3, atol=1e-4)


def test_ranges_of_each_batch_cut_nothing_off(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    context, weight = digits_context(tiny_graph, calibration=20), "blocks.1.mlp.fc1.weight"
    places, costs = {weight: Place((weight,), _centered)}, []
    for inputs in ("static", "dynamic"):
        equalizer = Equalizer(Ptq(inputs=inputs), context)  # type: ignore[arg-type]
        low, high = equalizer._ranges(tiny_graph, places, context.data.calibration)[weight]
        held = equalizer._held_out(places, {weight: (low / 2, high / 2)})
        equalizer._look(tiny_graph, {weight: [weight]}, held, context.data.calibration)
        costs.append(equalizer._losses(tiny_graph, places, held)[weight])
    assert (costs[0] > 2 * costs[1]).all()
