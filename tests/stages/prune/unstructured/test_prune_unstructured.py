"""Unstructured masks on a traced ViT: the smallest weights become zero, and the reported sizes are exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vitslim.errors import StageError
from vitslim.graph.edits import FakeQuantSite, Mask
from vitslim.graph.edits.fake_quant import insert_fake_quant
from vitslim.graph.model_graph import ModelGraph
from vitslim.graph.saved import load_graph, save_graph
from vitslim.graph.sketch import sketch
from vitslim.progress import Silent
from vitslim.recipe.stages import TwoFour, Unstructured
from vitslim.recipe.train import Train
from vitslim.sparsity import csr_bytes, device_bytes
from vitslim.stages.contract import StageContext, StageResult
from vitslim.stages.export.check import check_stored_weights
from vitslim.stages.export.onnx_export import export_onnx
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.prune.unstructured.magnitude import magnitude_masks
from vitslim.stages.prune.unstructured.stage import UnstructuredStage
from vitslim.training.loop import train
from vitslim.workload import read_workload

Prune = Callable[..., StageResult]


@pytest.fixture
def context(tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]) -> StageContext:
    return digits_context(tiny_graph, calibration=40)


@pytest.fixture
def prune(tiny_graph: ModelGraph, context: StageContext) -> Prune:
    def run(graph: ModelGraph = tiny_graph, **config: Any) -> StageResult:
        stage = UnstructuredStage(Unstructured(method="unstructured", **config))
        result = stage.apply(graph, context)
        assert stage.ensures(graph, result.graph) == []
        return result

    return run


def fractions(result: StageResult) -> dict[str, float]:
    return {name: 1 - mask.float().mean().item() for name, mask in result.graph.masks.items()}


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.floats(0, 0.99), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_the_smallest_magnitudes_are_removed_and_of_equal_ones_the_last(
    values: list[int], sparsity: float, cut: int
) -> None:
    weight = torch.tensor(values, dtype=torch.float32)
    kept = torch.cat(magnitude_masks([weight[:cut], weight[cut:]], sparsity))
    gone = int(len(values) * sparsity + 1e-9)
    order = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    assert sorted(order[: len(values) - gone]) == kept.nonzero().flatten().tolist()


def test_weights_that_are_not_finite_are_refused(tiny_graph: ModelGraph, prune: Prune) -> None:
    with torch.no_grad():
        tiny_graph.parameters()["blocks.0.mlp.fc1.weight"][0, 0] = torch.nan
    with pytest.raises(StageError, match="not finite"):
        prune()


def test_global_ranks_all_weights_together_and_local_each_layer(tiny_graph: ModelGraph, prune: Prune) -> None:
    with torch.no_grad():
        tiny_graph.parameters()["blocks.1.mlp.fc1.weight"].mul_(100)
    together, apart = fractions(prune(sparsity=0.4)), fractions(prune(sparsity=0.4, scope="local"))
    assert together["blocks.1.mlp.fc1.weight"] < 0.1 < together["blocks.0.mlp.fc1.weight"]
    assert all(fraction == pytest.approx(0.4, abs=1e-3) for fraction in apart.values())
    assert "head.weight" not in together.keys() | apart.keys()


def test_other_weights_and_the_input_graph_do_not_change(tiny_graph: ModelGraph, prune: Prune) -> None:
    before = {name: weight.detach().clone() for name, weight in tiny_graph.parameters().items()}
    result = prune(
        layers=(
            "fc1",
            "blocks.1.attn.qkv",
        )
    )
    names = {"blocks.0.mlp.fc1.weight", "blocks.1.mlp.fc1.weight", "blocks.1.attn.qkv.weight"}
    assert result.graph.masks.keys() == names
    for name, weight in result.graph.parameters().items():
        expected: Tensor = before[name] * result.graph.masks[name] if name in names else before[name]
        assert torch.equal(weight, expected)
        assert torch.equal(tiny_graph.parameters()[name], before[name])
    assert result.graph.edits[-1] == Mask("unstructured:0.5", tuple(result.graph.masks))


def test_known_csr_sizes() -> None:
    assert csr_bytes(rows=3, columns=10, kept=7, value_bits=32) == 7 * 4 + 7 * 2 + 4 * 4
    assert csr_bytes(rows=1, columns=2**16, kept=7, value_bits=8) == 7 + 7 * 4 + 2 * 4
    assert device_bytes("unstructured:0.9", 100, 100, 32) == 1000 * 6 + 101 * 4
    assert device_bytes("unstructured:0.1", 100, 100, 32) == 40_000  # dense is smaller


def test_the_report_has_both_sizes_and_the_estimate_agrees(tiny_graph: ModelGraph, prune: Prune) -> None:
    config = Unstructured(method="unstructured", sparsity=0.7)
    result = prune(sparsity=0.7)
    sizes = {name: mask.numel() for name, mask in result.graph.masks.items()}
    kept = sum(int(mask.sum()) for mask in result.graph.masks.values())
    rows = sum(len(mask) + 1 for mask in result.graph.masks.values())
    assert result.metrics["dense_bytes"] == 4 * sum(sizes.values())
    assert result.metrics["csr_bytes"] == 6 * kept + 4 * rows
    assert result.metrics["sparsity"] == pytest.approx(0.7, abs=1e-4)
    dense, after = sketch(tiny_graph).cost(), sketch(result.graph).cost()
    assert UnstructuredStage(config).estimate(sketch(tiny_graph)).cost() == after
    assert (after.bops, after.macs, after.weight_bytes) == (dense.bops, dense.macs, dense.weight_bytes)
    saved = result.metrics["dense_bytes"] - result.metrics["csr_bytes"]
    assert dense.device_bytes - after.device_bytes == pytest.approx(saved, rel=1e-3)
    assert all("CSR" in note.reason and "dense" in note.reason for note in result.changes)


def test_masks_hold_under_training_and_in_a_saved_graph(prune: Prune, context: StageContext, tmp_path: Path) -> None:
    graph = prune(sparsity=0.6).graph
    before = {name: weight.detach().clone() for name, weight in graph.parameters().items()}

    def objective(logits: Tensor, batch: Any) -> dict[str, Tensor]:
        return {"loss": torch.nn.functional.cross_entropy(logits, batch.labels)}

    config = Train(epochs=1, batch=8, lr=1e-2)
    train(graph.module, context.data.calibration, objective, config, 0, graph.masks, Silent())
    save_graph(graph, tmp_path)
    loaded = load_graph(tmp_path)
    assert loaded.edits == graph.edits
    for name, mask in graph.masks.items():
        weight = loaded.parameters()[name].detach()
        assert torch.equal(loaded.masks[name], mask)
        assert not weight[~mask].any()
        assert not torch.equal(weight, before[name])


@pytest.mark.slow
def test_the_file_names_the_pattern_and_it_is_not_read_as_2_4(prune: Prune, tmp_path: Path) -> None:
    graph = prune(
        layers=(
            "blocks.0.mlp.fc1",
            "blocks.1.mlp.fc1",
        )
    ).graph
    graph = insert_fake_quant(graph, [FakeQuantSite("blocks.0.mlp.fc1.weight", 8, 8)])
    with torch.no_grad():
        graph.parameters()["vitslim.q.blocks.0.mlp.fc1.weight_scale"].fill_(1e-3)
    summary = export_onnx(graph, tmp_path / "model.onnx")
    found = {note.layer: note.sparsity for note in summary.annotations if note.sparsity}
    assert found == dict.fromkeys(graph.masks, "unstructured:0.5")
    check_stored_weights(summary.path, graph)
    assert {operator.sparsity for operator in read_workload(summary.path).operators} == {""}
    with torch.no_grad():
        graph.parameters()["blocks.1.mlp.fc1.weight"].fill_(1.0)
    with pytest.raises(StageError, match=r"not unstructured:0\.5"):
        check_stored_weights(export_onnx(graph, tmp_path / "broken.onnx").path, graph)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"sparsity": 0.0}, "removes none of"),
        ({"layers": ("qvk",)}, "no layer is called 'qvk'"),
        ({"layers": ()}, "the list is empty"),
    ],
)
def test_keys_without_effect_are_refused(prune: Prune, config: dict[str, Any], message: str) -> None:
    with pytest.raises(StageError, match=message):
        prune(**config)


def test_a_mask_is_chosen_once_and_before_quantization(prune: Prune, tiny_graph: ModelGraph) -> None:
    sparse = prune(layers=("fc1",)).graph
    with pytest.raises(StageError, match=r"already has unstructured:0\.5 weights"):
        prune(graph=sparse)
    assert "one mask" in TwoFourStage(TwoFour(method="two-four")).requires(sketch(sparse))[0].message
    with pytest.raises(StageError, match="before quantize"):
        prune(graph=insert_fake_quant(tiny_graph, [FakeQuantSite("head.weight", 8, 8)]))
