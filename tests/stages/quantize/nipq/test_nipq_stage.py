"""The stage `quantize: {method: nipq}`: targets, phases, resuming, and the exported file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from vitslim.data import load_data
from vitslim.errors import StageError
from vitslim.graph.edits.quantize_attention import attention_sites
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.sketch import sketch
from vitslim.graph.trace import trace_timm
from vitslim.pipeline.bit_latency import gemm_latency
from vitslim.pipeline.inspect.inspection import inspect
from vitslim.progress import Silent
from vitslim.recipe.formats.profiles import ORT_CPU
from vitslim.recipe.schema import Data
from vitslim.recipe.stages import BitTarget, Nipq, TwoFour
from vitslim.recipe.train import Train
from vitslim.results import StageRecord
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.annotate import quantizer_sites
from vitslim.stages.export.check import check_stored_weights
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.quantize.nipq.stage import NipqStage
from vitslim.workload import read_workload

T = TypeVar("T")
SHORT = Train(epochs=3, batch=16, lr=1e-3, images=96)
FAST: dict[str, Any] = {"method": "nipq", "train": SHORT, "bit_lr": 0.3, "bit_loss": 100.0}
"""Few steps on few images, so bits must move fast."""


@pytest.fixture(scope="module")
def context(tiny_session_graph: ModelGraph, tmp_path_factory: pytest.TempPathFactory) -> StageContext:
    data = load_data(Data(kind="digits", calibration=24, eval_images=20), tiny_session_graph.source, 0)
    return StageContext(data, 0, Silent(), lambda _: StageResult(tiny_session_graph), tmp_path_factory.mktemp("work"))


def learn(graph: ModelGraph, context: StageContext, **keys: Any) -> StageResult:
    config = Nipq(**FAST | keys)
    assert list(config.problems([], [])) == []
    stage = NipqStage(config, gemm_latency(config))
    assert stage.requires(sketch(graph)) == []
    result = stage.apply(graph, context)
    assert stage.ensures(graph, result.graph) == []
    return result


@pytest.fixture(scope="module")
def four_bits(tiny_session_graph: ModelGraph, context: StageContext) -> StageResult:
    """Weights and activations with an average of four bits."""
    return learn(tiny_session_graph, context, target=BitTarget(average_bits=4))


def test_the_average_of_bits_reaches_the_target(four_bits: StageResult) -> None:
    assert four_bits.metrics["average_weight_bits"] == pytest.approx(4, abs=0.1)
    assert four_bits.metrics["average_activation_bits"] == pytest.approx(4, abs=0.1)
    assert four_bits.metrics["steps"] == 18


def test_the_bits_of_the_report_are_those_of_the_graph(four_bits: StageResult) -> None:
    sites, attention = quantizer_sites(four_bits.graph), attention_sites(four_bits.graph)
    assert len(four_bits.bits) == 2 * len(sites) - 1 + 4 * len(attention)  # pixels have no learned bits
    for one in four_bits.bits:
        block, _, operand = one.layer.partition(".attention.")
        if operand:
            assert one.bits == attention[block].bits_of(operand)
        else:
            site = sites[f"{one.layer}.weight"]
            assert one.bits == (site.weight_bits if one.operand == "weight" else site.activation_bits)
    assert sites["patch_embed.proj.weight"].activation_bits == 8
    assert sites["blocks.0.mlp.fc2.weight"].shift == 0.17
    assert sites["blocks.0.mlp.fc1.weight"].narrow


def test_the_cost_of_the_model_is_the_sum_over_its_bits(four_bits: StageResult) -> None:
    found = sketch(four_bits.graph)
    sizes = {name: found.parameters[name].value(found.axes) for name in found.bits}
    stored = sum(size * (4 if found.bits[name].weight <= 4 else 8) / 8 + 8 for name, size in sizes.items())
    rest = sum(size.value(found.axes) for name, size in found.parameters.items() if name not in sizes)
    assert found.cost().weight_bytes == stored + 4 * rest


@pytest.mark.parametrize(
    ("target", "keys", "metric"),
    [
        ({"bops": 0.04}, {}, "bops"),
        ({"size_mb": 0.085}, {"bits": (4, 8), "activation_bits": 8, "attention": False}, "size_mb"),
        ({"latency": 0.9, "backend": "sim:systolic"}, {}, "latency"),
    ],
)
def test_other_targets_are_met(
    tiny_graph: ModelGraph, context: StageContext, target: Mapping[str, Any], keys: dict[str, Any], metric: str
) -> None:
    limit = float(target[metric])
    if metric == "latency":
        config = Nipq(**FAST, target=BitTarget(**target))
        assert [one.where for one in NipqStage(config, gemm_latency(config)).requires(sketch(tiny_graph))] == [
            "target.latency"  # the array takes the same time for all bits
        ]
        return
    result = learn(tiny_graph, context, target=BitTarget(**target), **keys)
    cost = sketch(result.graph).cost()
    exact = {"bops": cost.bops / 1e9, "size_mb": cost.weight_bytes / 1e6}[metric]
    assert result.metrics[metric] == pytest.approx(exact, rel=1e-4)
    assert exact <= limit * (1 + 1e-6)
    assert exact > (0.99 if metric == "bops" else 0.9) * limit
    if "bits" in keys:
        assert {one.bits for one in result.bits if one.operand == "weight"} == {4, 8}


def test_a_latency_target_makes_both_operands_of_a_matmul_narrow(
    deit_tiny: ModelGraph, tiny_graph: ModelGraph, context: StageContext
) -> None:
    target = BitTarget(latency=0.65, backend="sim:a100", batch=256)
    config = Nipq(**FAST, target=target, bits=(4, 8), activation_bits=(4, 8))
    stage = NipqStage(config, gemm_latency(config))
    assert stage.requires(sketch(deit_tiny)) == []
    planned = stage.estimate(sketch(deit_tiny))
    assert planned.data_dependent
    assert {(one.weight, one.activation) for one in planned.bits.values()} >= {(4, 4), (8, 8)}
    with pytest.raises(ValueError, match="needs the latency of matmuls"):
        NipqStage(config).apply(tiny_graph, context)


def test_an_impossible_target_is_refused_before_the_run(tiny_graph: ModelGraph) -> None:
    for target, expected in ((BitTarget(average_bits=2), "average_bits"), (BitTarget(bops=0.01), "bops"),
                             (BitTarget(size_mb=0.05), "size_mb")):  # fmt: skip
        keys: dict[str, Any] = {"first_last_bits": 8, "bits": (4, 8) if target.size_mb else None}
        (problem,) = NipqStage(Nipq(**FAST, target=target, **keys)).requires(sketch(tiny_graph))
        assert problem.where == f"target.{expected}"
        assert "with the smallest bits of all tensors" in problem.message


def test_a_model_without_layers_to_quantize_is_refused(tiny_graph: ModelGraph) -> None:
    layers = tuple(linear.weight for linear in sketch(tiny_graph).linears)
    config = Nipq(**FAST, target=BitTarget(average_bits=4), skip=layers)
    assert [problem.where for problem in NipqStage(config).requires(sketch(tiny_graph))] == ["skip"]


def test_a_loss_that_is_not_finite_names_the_step(tiny_graph: ModelGraph, context: StageContext) -> None:
    train = SHORT.model_copy(update={"lr": 1e30, "warmup": 0.0})
    with pytest.raises(StageError, match=r"training stopped at step \d+ of 12: the loss is (nan|inf)"):
        learn(tiny_graph, context, target=BitTarget(average_bits=4), train=train)


def test_fixed_bits_and_masked_weights(tiny_graph: ModelGraph, context: StageContext) -> None:
    sparse = TwoFourStage(TwoFour(method="two-four")).apply(tiny_graph, context).graph
    result = learn(sparse, context, bits=3, activation_bits=5, first_last_bits=8, granularity="per-channel",
                   noise="empirical", attention=False, quantized_epochs=0)  # fmt: skip
    sites = quantizer_sites(result.graph)
    assert {site.weight_bits for site in sites.values()} == {3, 8} and sites["head.weight"].weight_bits == 8
    assert {site.activation_bits for site in sites.values()} == {5, 8}
    weights = result.graph.parameters()
    assert all(not weights[name][~mask].any() for name, mask in result.graph.masks.items())
    assert weights["vitslim.q.blocks.0.attn.qkv.weight_scale"].shape == (192,)
    assert result.metrics["loss_last"] < result.metrics["loss_first"]


def test_ranges_stay_as_calibrated_if_they_are_not_learned(tiny_graph: ModelGraph, context: StageContext) -> None:
    scales = []
    for lr in (1e-3, 1e-4):
        train = SHORT.model_copy(update={"lr": lr, "epochs": 2, "images": 64})
        fixed = learn(tiny_graph, context, bits=4, activation_bits=4, learn_ranges=False, train=train).graph
        scales.append({name: p for name, p in fixed.parameters().items() if name.startswith("vitslim.q.")})
    assert all(torch.equal(scale, scales[1][name]) for name, scale in scales[0].items())


class Interrupted(Silent):
    """Stops a loop of some label after a number of items."""

    def __init__(self, label: str, after: int) -> None:
        self.label, self.after = label, after

    def track(self, items: Iterable[T], label: str, total: int | None = None, images: int = 0) -> Iterator[T]:
        for number, item in enumerate(super().track(items, label, total)):
            if self.label in label and number == self.after:
                raise KeyboardInterrupt
            yield item


def test_an_interrupted_stage_ends_with_the_same_bits_and_weights(
    tiny_graph: ModelGraph, context: StageContext, tmp_path: Path
) -> None:
    """Stopped in the last epoch: both trainings continue from the state that they wrote."""
    train = SHORT.model_copy(update={"epochs": 4, "images": 64})
    keys = {"target": BitTarget(average_bits=4), "train": train, "quantized_epochs": 2}
    whole = learn(tiny_graph, context, **keys)
    kept = replace(context, keep=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        learn(tiny_graph, replace(kept, progress=Interrupted("real quantizers", 5)), **keys)
    assert {path.parent.name for path in tmp_path.rglob("*.safetensors")} == {"noise", "quantized"}
    resumed = learn(tiny_graph, kept, **keys)
    assert resumed.bits == whole.bits
    weights = resumed.graph.parameters()
    assert all(torch.equal(weights[name], weight) for name, weight in whole.graph.parameters().items())


def test_a_model_without_batch_norms_says_so(four_bits: StageResult) -> None:
    assert [note.reason for note in four_bits.skipped if note.layer == "batch norms"] == [
        "the model has no batch norms to re-estimate"
    ]


def test_a_cnn_is_quantized_and_its_batch_norms_are_reestimated(tmp_path: Path) -> None:
    graph = trace_timm("test_resnet", {"num_classes": 10, "in_chans": 3})
    data = load_data(Data(kind="digits", calibration=4, eval_images=10), graph.source, 0)
    context = StageContext(data, 0, Silent(), lambda _: StageResult(graph), tmp_path)
    train = Train(epochs=2, batch=4, lr=1e-4, images=8)
    result = learn(graph, context, target=BitTarget(average_bits=4), train=train, bits=(4, 8))
    assert [note.result for note in result.changes if note.layer == "15 batch norms"] == ["re-estimated from 2 batches"]
    sites = quantizer_sites(result.graph)
    assert len(sites) == 16 and {site.weight_bits for site in sites.values()} <= {4, 8}
    # Inputs of all layers but the first come after ReLU, or after a sum of such values; none is shifted.
    assert all(site.zero_point == 0 and not site.shift for site in sites.values() if site.activation_bits < 32)
    save_graph(result.graph, tmp_path)
    images = torch.randn(2, *graph.source.image)
    with torch.no_grad():
        assert torch.equal(load_graph(tmp_path).module(images), result.graph.module(images))


def test_the_file_has_the_integers_and_ranges_of_the_graph(four_bits: StageResult, tmp_path: Path) -> None:
    graph = four_bits.graph
    export_onnx(graph, tmp_path / "model.onnx", ORT_CPU)
    check_stored_weights(tmp_path / "model.onnx", graph)
    save_graph(graph, tmp_path)
    images = torch.randn(4, *graph.source.image)
    with torch.no_grad():
        assert torch.equal(load_graph(tmp_path).module(images), graph.module(images))
    found = inspect(tmp_path, layers=True)
    assert found.violations == ()
    assert len(found.differences) == 10
    assert all(one.activations == 0 and one.weights == 0 for one in found.differences)
    sites = quantizer_sites(graph)
    for layer in found.contents.layers:
        site = sites[f"{layer.name}.weight"]
        assert (layer.weight_bits, layer.activation_bits) == (site.weight_bits, site.activation_bits)
        assert layer.container == ("INT4" if site.weight_bits <= 4 else "INT8") and layer.granularity == "tensor"
    roles = [one.role for one in read_workload(tmp_path / "model.onnx").operators if one.op == "attention"]
    assert roles == ["QK^T", "PV", "class attention", "PV"]
    attention = attention_sites(graph)["blocks.0"]
    assert found.contents.metadata["vitslim.attention_bits"]["blocks.0"]["key"] == attention.bits[1]


def test_activations_below_eight_bits_are_marked(four_bits: StageResult) -> None:
    narrow = [note for note in four_bits.changes if "no integer kernel" in note.result]
    assert {note.layer for note in narrow} >= {"blocks.0.attn.qkv.weight", "blocks.0.attention"}
    assert all("learned" in note.reason for note in narrow)


def test_learned_bits_are_kept_in_the_record(four_bits: StageResult) -> None:
    cost = sketch(four_bits.graph).cost()
    record = StageRecord(
        name="01-quantize", kind="quantize", method="nipq", seconds=1, key="k", cost=cost, onnx_bytes=1,
        bits=four_bits.bits,
    )  # fmt: skip
    assert StageRecord.model_validate_json(record.model_dump_json()).bits == four_bits.bits
