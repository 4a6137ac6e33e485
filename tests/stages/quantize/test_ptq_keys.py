"""Keys of `quantize: {method: ptq}`: each changes the result; smoothing and noise on traced models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.data import load_data
from vitslim.graph.edits import DivideTokens, FakeQuantSite, InsertFakeQuant, ReadPixels, ScaleActivations
from vitslim.graph.edits.fake_quant import insert_fake_quant, quantized_layers, remove_fake_quant
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.nodes import tensor_of
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.progress import Silent
from vitslim.recipe.formats.profiles import ORT_CPU, PORTABLE
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import Ptq
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.check import OnnxFile, check_stored_weights
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.quantize.layer_noise import noise_shares
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.stages.quantize.scheme import FULL_RANGE_SUM
from vitslim.training.evaluate import sqnr_db
from vitslim.units import PAIR_LIMIT


@pytest.fixture
def context(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> StageContext:
    return digits_context(tiny_graph, calibration=130)


def quantize(graph: ModelGraph, context: StageContext, **keys: Any) -> ModelGraph:
    stage = PtqStage(Ptq(method="ptq", **keys))
    assert stage.requires(sketch(graph)) == []
    result = stage.apply(graph, context)
    assert stage.ensures(graph, result.graph) == []
    return result.graph


def sites(graph: ModelGraph) -> tuple[FakeQuantSite, ...]:
    edit = graph.edits[-1]
    assert isinstance(edit, InsertFakeQuant)
    return edit.sites


def logits(graph: ModelGraph, context: StageContext) -> torch.Tensor:
    with torch.no_grad():
        return graph.module(torch.stack([context.data.calibration[i][0] for i in range(8)]))


@pytest.fixture(scope="module")
def default_logits(tiny_session_graph: ModelGraph, tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    """Logits of the model that is quantized with the default of every key."""
    data = load_data(Data(kind="digits", calibration=130), tiny_session_graph.source, seed=0)
    results: dict[str, StageResult] = {}
    context = StageContext(data, 0, Silent(), results.__getitem__, tmp_path_factory.mktemp("default"))
    return logits(quantize(tiny_session_graph.copy(), context), context)


@pytest.mark.parametrize(
    "change",
    [
        {"bits": 4}, {"activation_bits": 6}, {"symmetric": True}, {"activations": "dynamic"}, {"activations": "float"},
        {"calibrate": "mse"}, {"smooth": False}, {"activation_scaling": "none"},
        {"rounding": "nearest"}, {"rotate": True}, {"bias_correction": False},
        {"skip": ("head",)}, {"first_last_bits": 4}, {"reduce_range": False},
    ],
)  # fmt: skip
def test_each_key_changes_the_result(
    tiny_graph: ModelGraph, context: StageContext, default_logits: torch.Tensor, change: dict[str, Any]
) -> None:
    assert not torch.equal(default_logits, logits(quantize(tiny_graph, context, **change), context))


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_adjacent_sums_fit_16_bits_only_with_reduce_range(
    tiny_graph: ModelGraph, context: StageContext, tmp_path: Path, rounding: str
) -> None:
    """On processors without VNNI sums of two products saturate; float matmuls have no such limit."""
    cases: tuple[dict[str, Any], ...] = (
        {"smooth": False},
        {"smooth": False, "reduce_range": False},
        {"activations": "float"},
    )
    fc2, errors, largest, cut = "blocks.1.mlp.fc2.weight", [], [], []
    for index, keys in enumerate(cases):
        graph = quantize(tiny_graph, context, rounding=rounding, **keys)
        path = tmp_path / f"{index}.onnx"
        export_onnx(graph, path, ORT_CPU)
        check_stored_weights(path, graph)
        layers = inspect(path).contents.layers
        largest.append(max(layer.pair_sum_max for layer in layers))
        cut.append(any(layer.may_saturate_int16 for layer in layers))
        moved = (graph.parameters()[fc2] - tiny_graph.parameters()[fc2]).detach()
        errors.append(float(moved.square().sum()))
    assert largest[0] <= PAIR_LIMIT < min(largest[1:]) and max(largest) <= FULL_RANGE_SUM
    assert cut == [False, True, False]
    assert errors[1] < 0.9 * errors[0]
    assert rounding == "gptq" or errors[2] == pytest.approx(errors[1])


def test_group_size_changes_the_scales(tiny_graph: ModelGraph, context: StageContext) -> None:
    keys: dict[str, Any] = {"activations": "float", "bits": 4}
    channel, group = (quantize(tiny_graph, context, **keys, group_size=size) for size in (0, 16))
    name = "vitslim.q.blocks.0.mlp.fc1.weight_scale"
    assert channel.parameters()[name].shape == (256,)
    assert group.parameters()[name].shape == (256, 4)
    reference = logits(tiny_graph, context)
    errors = [(logits(graph, context) - reference).square().sum() for graph in (channel, group)]
    assert errors[1] < errors[0]


GROUPS: dict[str, Any] = {"activations": "float", "bits": 4, "group_size": 16}


@pytest.mark.parametrize("keys", [{}, GROUPS, GROUPS | {"zero_points": True}, {"activations": "dynamic"}])
def test_a_saved_graph_comes_back_equal(
    tiny_graph: ModelGraph, context: StageContext, keys: dict[str, Any]
) -> None:  # fmt: skip
    graph = quantize(tiny_graph, context, **keys)
    save_graph(graph, context.workdir)
    again = load_graph(context.workdir)
    assert again.edits == graph.edits
    assert torch.equal(logits(again, context), logits(graph, context))
    assert [axis.name for axis in graph.axes.axes if not axis.frozen] != []


@pytest.mark.slow
def test_groups_with_zero_points_are_more_accurate_and_stored_as_integers(
    tiny_graph: ModelGraph, context: StageContext
) -> None:
    one_sided, path = tiny_graph.copy(), context.workdir / "model.onnx"
    with torch.no_grad():
        for name, parameter in one_sided.parameters().items():
            if name.endswith("weight") and "blocks" in name and parameter.ndim > 1:
                parameter.abs_()
    reference, found = logits(one_sided, context), []
    for zero_points in (False, True):
        graph = quantize(one_sided, context, **GROUPS, zero_points=zero_points)
        found.append(sqnr_db(reference, logits(graph, context)))
        for profile in (PORTABLE, ORT_CPU) if zero_points else (ORT_CPU,):
            export_onnx(graph, path, profile)
            check_stored_weights(path, graph)
            images = torch.stack([context.data.calibration[i][0] for i in range(8)])
            assert sqnr_db(logits(graph, context), OnnxFile(path)(images)) > 80  # only weights are integers
            inspected = inspect(path)
            layer = next(one for one in inspected.contents.layers if one.name == "blocks.0.mlp.fc1")
            assert inspected.violations == () and inspected.kernel(layer) == "MatMulNBits"
    assert found[1] > found[0] + 3


def test_the_estimate_equals_the_quantized_cost(tiny_graph: ModelGraph, context: StageContext) -> None:
    for keys in ({"bits": 4, "activations": "float", "group_size": 16}, {"bits": 3}, {"activations": "dynamic"},
                 {"bits": 4, "activations": "float", "group_size": 16, "first_last_bits": 8}):  # fmt: skip
        stage = PtqStage(Ptq(method="ptq", **keys))  # type: ignore[arg-type]
        assert sketch(stage.apply(tiny_graph, context).graph).cost() == stage.estimate(sketch(tiny_graph)).cost()


def test_the_first_and_last_layer_have_their_own_bits(tiny_graph: ModelGraph, context: StageContext) -> None:
    keys: dict[str, Any] = {"bits": 4, "group_size": 16, "activations": "float"}
    found = {site.weight: (site.weight_bits, site.group_size) for site in sites(quantize(tiny_graph, context, **keys))}
    first_last = {site.weight: (site.weight_bits, site.group_size)
            for site in sites(quantize(tiny_graph, context, **keys, first_last_bits=8))}  # fmt: skip
    assert first_last == found | {"patch_embed.proj.weight": (8, 0), "head.weight": (8, 0)}


def test_first_last_bits_are_refused_without_such_layers(tiny_graph: ModelGraph) -> None:
    whole = sketch(tiny_graph)
    middle = replace(whole, matmuls=tuple(p for p in whole.matmuls if p.role not in {"patch_embed", "head"}))
    stage = PtqStage(Ptq(first_last_bits=8))
    assert stage.requires(whole) == []
    assert [problem.where for problem in stage.requires(middle)] == ["first_last_bits"]


@pytest.mark.slow
def test_layers_that_do_not_depend_on_the_image_stay_in_float(digits_context: Callable[..., StageContext]) -> None:
    # With this many positions, the exporter does not fold their bias.
    graph = trace_timm("vit_relpos_small_patch16_224", {"img_size": 64, "patch_size": 4, "embed_dim": 32, "depth": 1,
                                                        "num_heads": 2, "num_classes": 10})  # fmt: skip
    context, constant = digits_context(graph), "blocks.0.attn.rel_pos.mlp.fc1.weight"
    stage = PtqStage(Ptq())
    result = stage.apply(graph, context)
    assert constant not in quantized_layers(result.graph.module)
    assert {note.layer: note.reason for note in result.skipped}[constant] == "does not depend on the image"
    assert stage.estimate(sketch(graph)).cost() == sketch(result.graph).cost()
    with torch.no_grad():
        images = torch.stack([context.data.calibration[i][0] for i in range(8)])
        expected = result.graph.module(images)
    export_onnx(result.graph, context.workdir / "model.onnx")
    assert sqnr_db(expected, OnnxFile(context.workdir / "model.onnx", exact=False)(images)) > 20
    assert inspect(context.workdir / "model.onnx").violations == ()


def with_a_large_hidden_unit(graph: ModelGraph, scaling: str) -> ModelGraph:
    """Enlarge a hidden unit: for all tokens where channels are scaled, for few of them where tokens are."""
    graph = graph.copy()
    with torch.no_grad():
        if scaling == "per-channel":
            tensor_of(graph.module, "blocks.1.mlp.fc1.bias")[3] += 30.0
        else:
            weight = tensor_of(graph.module, "blocks.1.mlp.fc1.weight")[3].mul_(40.0)
            tensor_of(graph.module, "blocks.1.mlp.fc1.bias")[3] -= 1.5 * weight.norm()
        tensor_of(graph.module, "blocks.1.mlp.fc2.weight")[:, 3] *= 0.1
    return graph


@pytest.mark.slow
@pytest.mark.parametrize(("scaling", "kind"), [("per-channel", ScaleActivations), ("per-token", DivideTokens)])
def test_activations_after_gelu_are_scaled_in_the_graph_and_the_file(
    tiny_graph: ModelGraph, context: StageContext, scaling: str, kind: type[ScaleActivations] | type[DivideTokens]
) -> None:
    large = with_a_large_hidden_unit(tiny_graph, scaling)
    plain, scaled = (quantize(large, context, activation_scaling=one) for one in ("none", scaling))
    (weights,) = [scaled_layers(edit) for edit in scaled.edits if isinstance(edit, kind)]
    assert "blocks.1.mlp.fc2.weight" in weights
    assert all(weight.endswith("mlp.fc2.weight") for weight in weights)
    assert not any(isinstance(edit, (ScaleActivations, DivideTokens)) for edit in plain.edits)
    reference = logits(large, context)
    assert sqnr_db(reference, logits(scaled, context)) > 3 + sqnr_db(reference, logits(plain, context))
    save_graph(scaled, context.workdir)
    assert torch.equal(logits(load_graph(context.workdir), context), logits(scaled, context))
    for profile in (PORTABLE, ORT_CPU):
        export_onnx(scaled, context.workdir / "model.onnx", profile)
        images = torch.stack([context.data.calibration[i][0] for i in range(8)])
        assert sqnr_db(logits(scaled, context), OnnxFile(context.workdir / "model.onnx")(images)) > 30
        assert inspect(context.workdir / "model.onnx").violations == ()


def scaled_layers(edit: ScaleActivations | DivideTokens) -> Iterable[str]:
    return edit.weights if isinstance(edit, ScaleActivations) else edit.floors


def test_noise_shares_of_a_linear_model_are_exact() -> None:
    graph = trace_timm("vit_tiny_patch16_224", {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1,
                                                "num_heads": 2, "num_classes": 10})  # fmt: skip
    images = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        reference = graph.module(images)
    shift = {"head.weight": lambda x: x + 0.01 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))}
    share = noise_shares(graph.module, shift, [images], 0)["head.weight"]
    weight = graph.parameters()["head.weight"]
    error = 0.01 * torch.randn((64, 32), generator=torch.Generator().manual_seed(1)) @ weight.T
    assert share == pytest.approx(float(error.square().sum() / reference.square().sum()), rel=0.5)


def test_removing_quantizers_gives_the_float_graph_back(tiny_graph: ModelGraph, context: StageContext) -> None:
    graph = quantize(tiny_graph, context, smooth=False, rounding="nearest", bias_correction=False)
    plain = remove_fake_quant(graph)
    assert not quantized_layers(plain.module)
    assert plain.edits == (*tiny_graph.edits, ReadPixels(("patch_embed.proj.weight",)))
    torch.testing.assert_close(logits(plain, context), logits(tiny_graph, context), rtol=1e-5, atol=1e-5)
    again = insert_fake_quant(plain, sites(graph), dict(graph.parameters()))
    assert torch.equal(logits(again, context), logits(graph, context))
