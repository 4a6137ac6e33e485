"""`average_bits`: weights whose rounding adds most noise get eight bits, as far as the average allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.graph.edits import FakeQuantSite
from vitslim.graph.edits.fake_quant import insert_fake_quant, layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.recipe.formats.profiles import ORT_CPU, PORTABLE
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.annotate import quantizer_sites
from vitslim.stages.export.check import check_stored_weights
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.quantize.layer_noise import weight_noise_shares
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.stages.quantize.weights.forms import eight_bit_weights
from vitslim.training.evaluate import sqnr_db


@pytest.fixture
def context(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> StageContext:
    return digits_context(tiny_graph, calibration=60)


def quantize(graph: ModelGraph, context: StageContext, **keys: Any) -> StageResult:
    stage = PtqStage(Ptq(bits=4, **keys))
    assert stage.requires(sketch(graph)) == []
    result = stage.apply(graph, context)
    assert stage.ensures(graph, result.graph) == []
    return result


def mean_of(graph: ModelGraph) -> float:
    sizes = {site.weight: tensor_of(graph.module, site.weight).numel() for site in quantizer_sites(graph).values()}
    return sum(site.weight_bits * sizes[site.weight] for site in quantizer_sites(graph).values()) / sum(sizes.values())


def test_weights_of_most_noise_for_their_size_get_eight_bits() -> None:
    shares = {"small": 0.1, "large": 0.5, "harmless": 0.0, "end": 0.9}
    sizes = {"small": 10, "large": 100, "harmless": 10, "end": 10}
    bits = {"small": 4, "large": 4, "harmless": 4, "end": 8}
    assert eight_bit_weights(shares, sizes, bits, 4.3) == set()  # the end has taken it all
    assert eight_bit_weights(shares, sizes, bits, 4 + 4 * 20 / 130) == {"small"}
    assert eight_bit_weights(shares, sizes, bits, 4 + 4 * 110 / 130) == {
        "small",
        "harmless",
    }  # too large
    assert eight_bit_weights(shares, sizes, bits, 4 + 4 * 120 / 130) == {"small", "large"}
    assert eight_bit_weights(shares, sizes, bits, 8.0) == {"small", "large", "harmless"}


def test_weight_noise_is_the_change_of_the_logits_without_the_bias() -> None:
    graph = trace_timm("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1,
                                                "num_heads": 2, "num_classes": 10})  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 16, 16, generator=generator)
    layers = layer_nodes(graph.module)
    for name in ("head.weight", "blocks.0.mlp.fc2.weight", "patch_embed.proj.weight"):
        weight = tensor_of(graph.module, name)
        changed = weight.detach() + 1e-3 * weight.detach().std() * torch.randn(weight.shape, generator=generator)
        share = weight_noise_shares(graph.module, {name: changed}, [images], 0)[name]
        with torch.no_grad():
            before = graph.module(images)
            weight.copy_(changed)
            moved = graph.module(images) - before
        if name == "head.weight":  # one row an image: the mean of a channel is that of a logit
            moved -= moved.mean(dim=0)
            assert share == pytest.approx(float(moved.square().sum() / before.square().sum()), rel=0.3)
        assert 0 < share < 1.5 * float(moved.square().sum() / before.square().sum())
    assert len(layers) == 6


@pytest.mark.parametrize(
    "keys",
    [
        {},
        pytest.param({"group_size": 16}, marks=pytest.mark.slow),
        pytest.param({"group_size": 16, "activations": "float"}, marks=pytest.mark.slow),
        pytest.param({"first_last_bits": 8, "group_size": 16}, marks=pytest.mark.slow),
    ],
)
def test_more_bits_are_more_accurate_and_keep_the_average(
    tiny_graph: ModelGraph, context: StageContext, tmp_path: Path, keys: dict[str, Any]
) -> None:
    x = torch.stack([context.data.calibration[i][0] for i in range(50)])
    reference, found = tiny_graph.module(x).detach(), list[float]()
    for mean in (None, 5.5, 7.0):
        result = quantize(tiny_graph, context, rounding="nearest", average_bits=mean, **keys)
        found.append(sqnr_db(reference, result.graph.module(x).detach()))
        if mean is not None:
            assert mean - 1.2 < mean_of(result.graph) <= mean  # the largest layer has a fourth of all weights
    assert found[0] < found[1] < found[2]
    wide = [site for site in quantizer_sites(result.graph).values() if site.weight_bits == 8]
    assert wide and not any(site.group_size or site.integer_scales for site in wide)
    noted = [note.layer for note in result.changes if "rounding adds most noise" in note.reason]
    assert set(noted) <= {site.weight for site in wide} and len(noted) >= len(wide) - 2
    profile = PORTABLE if "activations" in keys else ORT_CPU
    export_onnx(result.graph, tmp_path / "model.onnx", profile)
    check_stored_weights(tmp_path / "model.onnx", result.graph)
    facts = inspect(tmp_path / "model.onnx").contents
    assert {layer.weight_bits for layer in facts.layers} == {4, 8}


def test_an_average_without_room_is_refused(tiny_graph: ModelGraph) -> None:
    stage = PtqStage(Ptq(bits=4, first_last_bits=8, average_bits=4.2))  # the first and the last layer need more
    (problem,) = stage.requires(sketch(tiny_graph))
    assert (problem.where, problem.message) == (
        "average_bits", "an average of 4.2 bits is too low for 8 bits in any weight"
    )  # fmt: skip
    average = mean_of(_with_first_and_last(tiny_graph))
    assert problem.hint == f"set it above {average:.2f}"


def _with_first_and_last(graph: ModelGraph) -> ModelGraph:
    bits = {"patch_embed.proj.weight": 8, "head.weight": 8}
    found = [FakeQuantSite(weight, bits.get(weight, 4), 32) for weight in layer_nodes(graph.module)]
    return insert_fake_quant(graph, found)


def test_the_plan_has_the_bytes_to_within_a_layer(tiny_graph: ModelGraph, context: StageContext) -> None:
    stage = PtqStage(Ptq(bits=4, average_bits=6))
    estimate = stage.estimate(sketch(tiny_graph))
    assert estimate.data_dependent
    exact = sketch(stage.apply(tiny_graph, context).graph)
    largest = max(tensor_of(tiny_graph.module, w).numel() for w in layer_nodes(tiny_graph.module))
    assert abs(estimate.cost().weight_bytes - exact.cost().weight_bytes) <= largest / 2
