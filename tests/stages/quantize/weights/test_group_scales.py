"""Group-wise weights with integer activations: group scales are integer multiples of the channel scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from vitslim.backends.measured.kernels import read_kernels
from vitslim.errors import StageError
from vitslim.graph.edits.fake_quant import integer_weights, layer_nodes
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.graph.ops.fake_quant import fake_quant
from vitslim.graph.ops.group_scales import factor_group_scales
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.sketch import sketch
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.recipe.formats.profiles import ORT_CPU
from vitslim.recipe.stages import Ptq, TwoFour
from vitslim.stages.contract import StageContext
from vitslim.stages.export.annotate import quantizer_sites
from vitslim.stages.export.check import OnnxFile, check_stored_weights, compare_outputs
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.stages.quantize.scheme import FULL_RANGE_SUM
from vitslim.stages.quantize.weights.group_scales import channel_scale, group_multiples
from vitslim.stages.quantize.weights.weight_scales import weight_scale
from vitslim.stages.reconstruction.curvature import Curvature
from vitslim.stages.reconstruction.gptq import gptq, refine
from vitslim.training.evaluate import sqnr_db
from vitslim.units import PAIR_LIMIT

GROUP = 16
KEYS: dict[str, Any] = {"bits": 4, "group_size": GROUP}


@pytest.fixture
def context(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> StageContext:
    return digits_context(tiny_graph, calibration=60)


@pytest.fixture
def weight() -> Tensor:
    """Rows whose groups differ in magnitude, with zeros; one row is all zeros."""
    generator = torch.Generator().manual_seed(0)
    found = torch.randn(24, 4 * GROUP, generator=generator) * torch.rand(24, 4, generator=generator).repeat_interleave(
        GROUP, dim=1
    )
    found[:, ::5], found[3] = 0, 0
    return found


def quantize(graph: ModelGraph, context: StageContext, **keys: Any) -> ModelGraph:
    stage = PtqStage(Ptq(**KEYS | keys))
    assert stage.requires(sketch(graph)) == []
    result = stage.apply(graph, context)
    assert stage.ensures(graph, result.graph) == []
    return result.graph


def images(context: StageContext, count: int) -> Tensor:
    return torch.stack([context.data.calibration[i][0] for i in range(count)])


def logits(graph: ModelGraph, x: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = graph.module(x)
    return found


def rounded(weight: Tensor, bits: int, limit: int = PAIR_LIMIT) -> tuple[Tensor, Tensor, Tensor]:
    """Return 8-bit integers, integer group scales, and channel scales."""
    scale = channel_scale(weight, bits, GROUP, limit)
    multiples = group_multiples(weight, scale, bits, GROUP, limit)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    values = fake_quant(weight, scale[:, None] * multiples, 0, 1, low, high, GROUP)
    return (values / scale[:, None]).round(), multiples, scale


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_integer_group_scales_are_nearly_as_accurate_as_float_ones(weight: Tensor, bits: int) -> None:
    integers, _, scale = rounded(weight, bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    free = fake_quant(weight, weight_scale(weight, (low, high), GROUP), 0, 1, low, high, GROUP)
    channel = fake_quant(weight, weight_scale(weight, (-high, high)), 0, 0, -high, high, 0)
    error, best, plain = (
        float((values - weight).square().sum()) for values in (integers * scale[:, None], free, channel)
    )
    assert best <= error < 1.1 * best < 0.7 * plain
    assert (integers[weight == 0] == 0).all() and (scale > 0).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_sums_of_adjacent_products_fit_into_16_bits(weight: Tensor, bits: int) -> None:
    integers, multiples, _ = rounded(weight, bits)
    assert 2 * int(integers.abs().max()) <= PAIR_LIMIT
    assert multiples.min() >= 1 and multiples.max() <= 15
    assert len(set(multiples.flatten().tolist())) > 3  # the groups differ


def test_group_scales_are_finer_without_the_limit_on_sums(weight: Tensor) -> None:
    (integers, _, scale), (free, multiples, finer) = rounded(weight, 4), rounded(weight, 4, FULL_RANGE_SUM)
    assert PAIR_LIMIT // 2 < int(free.abs().max()) <= 127
    assert 8 < multiples.max() <= 15
    error, less = (float((c * s[:, None] - weight).square().sum()) for c, s in ((integers, scale), (free, finer)))
    assert less < 0.98 * error


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_int8_weights_factor_into_narrow_weights_and_group_scales(weight: Tensor, bits: int) -> None:
    integers, _, _ = rounded(weight, bits)
    narrow, group_scales = factor_group_scales(integers.to(torch.int8), bits, GROUP)
    assert (narrow.shape, group_scales.shape) == ((24, 4, GROUP), (24, 4, 1))
    assert torch.equal((narrow * group_scales).reshape(integers.shape), integers.to(torch.int8))
    assert -(2 ** (bits - 1)) <= int(narrow.min()) and int(narrow.max()) < 2 ** (bits - 1)
    assert int(group_scales.min()) >= 1 and int(group_scales.max()) <= 15
    assert (group_scales[3] == 1).all()  # the row of zeros


def test_integers_that_are_not_multiples_are_refused() -> None:
    integers = torch.zeros(1, GROUP, dtype=torch.int8)
    integers[0, :2] = torch.tensor([7, 60])
    with pytest.raises(ValueError, match="not integer multiples of 4-bit weights in groups of 16"):
        factor_group_scales(integers, 4, GROUP)


def test_refined_integers_stay_multiples_and_cost_less(weight: Tensor) -> None:
    x = torch.randn(400, 64, generator=torch.Generator().manual_seed(1)) @ (torch.eye(64) + 0.1)
    curvature = Curvature.of_rows(x.T @ x, 24)
    scale = channel_scale(weight, 4, GROUP)
    multiples = group_multiples(weight, scale, 4, GROUP)
    unit = multiples.repeat_interleave(GROUP, dim=1)
    values = gptq(weight, scale[:, None] * multiples, curvature, (-8, 7), GROUP)
    found, scales = refine(weight, values, scale, curvature, (-8 * unit, 7 * unit), unit)
    assert curvature.cost(found - weight) < 0.95 * curvature.cost(values - weight)
    integers = (found / (scales[:, None] * unit)).round()
    torch.testing.assert_close(integers * unit * scales[:, None], found)
    assert integers.min() >= -8 and integers.max() <= 7
    assert (found[weight == 0] == 0).all()


def written(graph: ModelGraph, context: StageContext, path: Path) -> Counter[str]:
    """Write a file, check it against the graph, and count the kernels of ONNX Runtime."""
    export_onnx(graph, path, ORT_CPU)
    check_stored_weights(path, graph)
    x = images(context, 17)
    assert compare_outputs(logits(graph, x), OnnxFile(path)(x)).sqnr_db > 20
    return Counter(read_kernels(path, "the file").counts)


@pytest.mark.parametrize(
    ("keys", "fused"),
    [
        ({}, {"QGemm": 10}),
        pytest.param({"rounding": "nearest", "bias_correction": False}, {"QGemm": 10}, marks=pytest.mark.slow),
        pytest.param({"reduce_range": False}, {"QGemm": 10}, marks=pytest.mark.slow),
        pytest.param({"activations": "dynamic"}, {"DynamicQuantizeMatMul": 9, "QGemm": 1}, marks=pytest.mark.slow),
        pytest.param({"bits": 3, "first_last_bits": 8}, {"QGemm": 10}, marks=pytest.mark.slow),
    ],
)
def test_a_file_stores_int4_and_runs_int8_gemms(
    tiny_graph: ModelGraph, context: StageContext, tmp_path: Path, keys: dict[str, Any], fused: dict[str, int]
) -> None:
    graph, path = quantize(tiny_graph, context, **keys), tmp_path / "model.onnx"
    found = written(graph, context, path)
    assert {name: found[name] for name in fused} == fused
    types = Counter(one.data_type for one in onnx.load(path).graph.initializer if len(one.dims) == 3)
    in_groups = [site for site in quantizer_sites(graph).values() if site.integer_scales]
    assert len(in_groups) == (8 if "first_last_bits" in keys else 9)
    assert types[onnx.TensorProto.INT4] == types[onnx.TensorProto.UINT4] == len(in_groups)
    inspected = inspect(path)
    assert inspected.violations == ()
    layers = [layer for layer in inspected.contents.layers if layer.granularity == f"group {GROUP}"]
    assert [(layer.container, layer.weight_bits) for layer in layers] == [("INT4", keys.get("bits", 4))] * len(
        in_groups
    )
    assert {layer.annotation.granularity for layer in layers if layer.annotation} == {f"group:{GROUP}"}
    largest = max(layer.pair_sum_max for layer in layers)
    assert (
        (largest > PAIR_LIMIT)
        == any(layer.may_saturate_int16 for layer in layers)
        == (not keys.get("reduce_range", True))
    )


@pytest.mark.slow
def test_group_scales_are_more_accurate_than_channel_scales_and_take_few_bytes(
    tiny_graph: ModelGraph, context: StageContext, tmp_path: Path
) -> None:
    x, sizes, found = images(context, 50), {}, {}
    for group_size in (0, GROUP):
        graph = quantize(tiny_graph, context, group_size=group_size, rounding="nearest")
        found[group_size] = sqnr_db(logits(tiny_graph, x), logits(graph, x))
        sizes[group_size] = inspect(_exported(graph, tmp_path)).contents
    assert found[GROUP] > found[0] + 1
    extra = {group_size: facts.scale_bytes for group_size, facts in sizes.items()}
    group_scales = (
        sum(layer.weights for layer in sizes[GROUP].layers if layer.granularity.startswith("group")) / GROUP / 2
    )
    assert extra[GROUP] - extra[0] == group_scales


def _exported(graph: ModelGraph, folder: Path) -> Path:
    export_onnx(graph, folder / "model.onnx", ORT_CPU)
    return folder / "model.onnx"


def test_the_plan_has_the_bytes_of_group_scales(tiny_graph: ModelGraph, context: StageContext) -> None:
    stage = PtqStage(Ptq(**KEYS))
    assert stage.estimate(sketch(tiny_graph)).cost() == sketch(stage.apply(tiny_graph, context).graph).cost()
    channel = PtqStage(Ptq(bits=4)).estimate(sketch(tiny_graph))
    weights = sum(linear.in_features * linear.out_features for linear in channel.linears if not linear.convolution)
    assert stage.estimate(sketch(tiny_graph)).cost().weight_bytes - channel.cost().weight_bytes == weights // GROUP // 2


def test_a_saved_graph_computes_the_same(tiny_graph: ModelGraph, context: StageContext, tmp_path: Path) -> None:
    graph, x = quantize(tiny_graph, context), images(context, 4)
    save_graph(graph, tmp_path)
    assert torch.equal(logits(load_graph(tmp_path), x), logits(graph, x))


@pytest.mark.slow
def test_zeros_of_a_mask_stay_zeros_in_the_file(tiny_graph: ModelGraph, context: StageContext, tmp_path: Path) -> None:
    sparse = TwoFourStage(TwoFour(method="two-four")).apply(tiny_graph, context).graph
    graph = quantize(sparse, context)
    assert written(graph, context, tmp_path / "model.onnx")["QGemm"] == 10
    facts = inspect(tmp_path / "model.onnx")
    masked = [layer for layer in facts.contents.layers if layer.annotation and layer.annotation.sparsity == "2:4"]
    assert len(masked) >= 8 and all("2:4" in layer.patterns for layer in masked)
    assert facts.violations == ()


def test_integer_weights_of_a_layer_have_eight_bits(tiny_graph: ModelGraph, context: StageContext) -> None:
    graph = quantize(tiny_graph, context)
    for weight, (node, *_) in layer_nodes(graph.module).items():
        integers = integer_weights(graph.module, node.args[1]).to(torch.int8)
        if quantizer_sites(graph)[weight].integer_scales:
            assert len(set(integers.abs().flatten().tolist())) > 16  # more than four bits can hold
            factor_group_scales(integers, 4, GROUP)


def test_weights_changed_after_quantization_are_refused(
    tiny_graph: ModelGraph, context: StageContext, tmp_path: Path
) -> None:
    graph = quantize(tiny_graph, context, rounding="nearest")
    with torch.no_grad():
        tensor_of(graph.module, "blocks.1.mlp.fc1.weight").mul_(1.1)
    with pytest.raises(StageError, match=r"'blocks.1.mlp.fc1.weight' was changed after it was quantized"):
        export_onnx(graph, tmp_path / "model.onnx", ORT_CPU)
    assert list(tmp_path.glob("*.onnx")) == []
