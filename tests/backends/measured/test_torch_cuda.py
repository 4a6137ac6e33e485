"""Deployment of graphs for a GPU, up to the calls that need one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vitslim.backends.measured.cuda import deploy as deployment
from vitslim.backends.measured.cuda.deploy import deploy, two_four_layers
from vitslim.backends.measured.cuda.linears import Int8Linear
from vitslim.backends.measured.torch_cuda import compiled
from vitslim.backends.registry import parse_backend
from vitslim.data.digits import MEAN, STD
from vitslim.errors import BackendUnavailableError
from vitslim.graph.edits.divide_tokens import divided_layers
from vitslim.graph.model_graph import ModelGraph
from vitslim.progress import Silent
from vitslim.recipe.stages import Ptq, TwoFour
from vitslim.stages.contract import StageContext
from vitslim.stages.prune.two_four.stage import TwoFourStage
from vitslim.stages.quantize.ptq.stage import PtqStage
from vitslim.training.evaluate import sqnr_db

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def pictures(graph: ModelGraph, count: int = 3) -> torch.Tensor:
    """Pixels of 8 bits, normalized as digits are."""
    pixels = torch.randint(0, 256, (count, *graph.source.image), generator=torch.Generator().manual_seed(0)) / 255
    return (pixels - MEAN) / STD


@pytest.mark.parametrize(
    ("keys", "kind"),
    [
        ({}, "int8"),
        ({"symmetric": True}, "int8"),
        ({"activation_scaling": "per-token"}, "int8"),
        ({"bits": 4, "activation_bits": 4}, "int8"),
        ({"activations": "float"}, "float"),
        ({"bits": 4, "group_size": 32, "activations": "float"}, "float"),
    ],
    ids=str,
)
def test_integer_layers_compute_the_quantized_graph(
    tiny_graph: ModelGraph,
    digits_context: Callable[..., StageContext],
    monkeypatch: pytest.MonkeyPatch,
    keys: dict[str, Any],
    kind: str,
) -> None:
    monkeypatch.setattr("vitslim.stages.quantize.smoothing.places.WORTH_A_DIVISION", float("inf"))
    quantized = PtqStage(Ptq(method="ptq", **keys)).apply(tiny_graph, digits_context(tiny_graph)).graph
    module, kernels = deploy(quantized, "cpu")
    assert kernels.pop("patch_embed.proj.weight") == "float"
    assert set(kernels.values()) == {kind}
    assert not any("fake_quant" in str(node.target) for node in module.graph.nodes)
    # Smoothing factors are part of the input scales of integer layers.
    factors = sum("input_factor" in str(node.target) for node in quantized.module.graph.nodes)
    assert factors == (0 if "float" in keys.values() or "per-token" in keys.values() else 2)
    assert len(divided_layers(quantized)) == (2 if "per-token" in keys.values() else 0)
    assert not any("input_factor" in str(node.target) for node in module.graph.nodes)
    images = pictures(quantized)
    with torch.no_grad():
        pairs = zip(quantized.module(images), module(images), strict=True)
        worst, middle, _ = sorted(sqnr_db(one[None], other[None]) for one, other in pairs)
    # A value halfway between two integers may be rounded to either, which is seen in one image.
    assert middle > 100
    assert worst > 30


def test_quantized_attention_is_listed_as_float(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    quantized = PtqStage(Ptq(attention=True)).apply(tiny_graph, digits_context(tiny_graph)).graph
    module, kernels = deploy(quantized, "cpu")
    assert {kernels["blocks.0.attention"], kernels["blocks.1.attention"]} == {"float"}
    assert not any("fake_quant" in str(node.target) for node in module.graph.nodes)
    images = pictures(quantized)
    with torch.no_grad():
        assert sqnr_db(quantized.module(images), module(images)) > 20


def test_a_dense_graph_is_not_changed(tiny_graph: ModelGraph) -> None:
    module, kernels = deploy(tiny_graph, "cpu")
    assert set(kernels.values()) == {"float"}
    images = pictures(tiny_graph)
    with torch.no_grad():
        torch.testing.assert_close(module(images), tiny_graph.module(images))
    assert all(weight.requires_grad for weight in tiny_graph.module.parameters())


def test_small_operands_are_padded_for_the_integer_gemm(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []
    int_mm = torch._int_mm

    def recorded(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        seen.append((*left.shape, right.shape[1]))
        return int_mm(left, right)

    monkeypatch.setattr(torch, "_int_mm", recorded)
    integers = torch.arange(-60, 60, dtype=torch.int8).reshape(10, 12)
    layer = Int8Linear(integers, torch.full((10,), 0.5), torch.tensor(0.25), 3, (0, 255), torch.ones(10))
    for rows in (2, 33):
        x = torch.linspace(-1, 60, rows * 12).reshape(rows, 12)
        expected = ((x / 0.25).round() + 3).clamp(0, 255).sub(3) * 0.25 @ (integers.float() * 0.5).T + 1
        torch.testing.assert_close(layer(x), expected)
    assert seen == [(32, 16, 16), (64, 16, 16)]


@pytest.mark.slow
def test_a_compiled_graph_computes_the_same(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext]
) -> None:
    """The compiled form that a GPU runs, compiled for the CPU."""
    quantized = PtqStage(Ptq(method="ptq")).apply(tiny_graph, digits_context(tiny_graph)).graph
    module, kernels = deploy(quantized, "cpu")
    fast = compiled(module, dict.fromkeys(kernels, "float"))
    with torch.no_grad():
        for count in (1, 3):
            images = pictures(quantized, count)
            assert sqnr_db(module(images), fast(images)) > 60


def test_the_pairs_pattern_has_no_sparse_kernel(
    tiny_graph: ModelGraph, monkeypatch: pytest.MonkeyPatch, digits_context: Callable[..., StageContext]
) -> None:
    monkeypatch.setattr(deployment, "move_tensors", lambda *_: None)
    stage = TwoFourStage(TwoFour(method="two-four", pattern="2:4-pairs"))
    graph = stage.apply(tiny_graph, digits_context(tiny_graph)).graph
    _, kernels = deploy(graph, "cuda")
    assert set(kernels.values()) == {"float"}
    assert {layer.reason for layer in two_four_layers(graph)} == {"cuSPARSELt has no kernel for `2:4-pairs`"}


@pytest.mark.parametrize("bits", [16, 8])
def test_two_four_layers_are_packed_where_tiles_fit(
    tiny_graph: ModelGraph, digits_context: Callable[..., StageContext], monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    """Up to the call that needs the device: the packed layers, and that their weights are 2:4."""
    packed: list[torch.Tensor] = []
    monkeypatch.setattr(deployment, "move_tensors", lambda *_: None)
    monkeypatch.setattr(torch, "_cslt_compress", packed.append)
    context = digits_context(tiny_graph)
    graph = TwoFourStage(TwoFour(method="two-four")).apply(tiny_graph, context).graph
    if bits == 8:
        graph = PtqStage(Ptq(method="ptq")).apply(graph, context).graph
    _, kernels = deploy(graph, "cuda")
    sparse = {name for name, kernel in kernels.items() if kernel.endswith(" 2:4")}
    rows, columns = deployment.SPARSE_TILES[torch.int8 if bits == 8 else torch.float16]
    shapes = {name: weight.shape for name, weight in graph.parameters().items() if name in graph.masks}
    fits = {n for n, shape in shapes.items() if len(shape) == 2 and not shape[0] % rows and not shape[1] % columns}
    assert sparse == fits and sparse
    told = {f"{layer.layer}.weight": layer for layer in two_four_layers(graph)}
    assert {name for name, layer in told.items() if layer.status == "selected"} == sparse
    assert told.keys() == graph.masks.keys()
    reasons = {layer.reason for name, layer in told.items() if name not in sparse}
    assert reasons and all("no multiple of" in reason or reason == "not a linear layer" for reason in reasons)
    assert len(packed) == len(sparse)
    assert all(bool(((weight.reshape(-1, 4) != 0).sum(dim=1) <= 2).all()) for weight in packed)


@no_gpu
def test_the_backend_is_unavailable_without_a_gpu(tmp_path: Path) -> None:
    backend = parse_backend("torch:cuda")
    with pytest.raises(BackendUnavailableError, match="no CUDA device"):
        backend.require()
    with pytest.raises(BackendUnavailableError, match="no CUDA device"):
        backend.measure({"a": tmp_path / "model.onnx"}, "a", (1,), (1,), 0.1, Silent())  # type: ignore[union-attr]
